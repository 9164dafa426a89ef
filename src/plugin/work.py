"""The plugin's work beside its handler: threads, executors, atexit functions and child processes.

Concatenated with `shim.py` into one program. The process waits for such work before it ends the output, in
the order of an ordinary Python process. An exception in such work fails the job. Child processes that
multiprocessing starts with the method `spawn` or `forkserver` find the plugin as a module.
"""

import atexit
import os
import sys
import threading
import time
import traceback
import weakref

# Seconds until the log names a thread for which the job waits.
NAMES_AFTER = 2.0
# Seconds in which helper processes of multiprocessing must end. Then they are killed.
HELPERS_WAIT = 5.0
# Folder in the working directory that contains the plugin as a module.
MODULE_FOLDER = ".casparian_plugin"
CHILD_MODULE = """\
import importlib.util
import sys
from importlib.machinery import SourceFileLoader

shim = sys.modules.get({shim!a})
if shim is None:
    loader = SourceFileLoader({shim!a}, {path!a})
    shim = importlib.util.module_from_spec(importlib.util.spec_from_loader({shim!a}, loader))
    sys.modules[{shim!a}] = shim
    loader.exec_module(shim)
shim.provide_sdk()
shim.run_source({source!a}, {filename!a}, globals())
"""
# Source of the module by which a child process imports the shim.
SHIM_STUB = """\
__file__ = {path!a}
with open(__file__, "rb") as file:
    exec(compile(file.read(), __file__, "exec"))
"""


def provide_to_children(source, filename):
    """Lets child processes import the plugin as a module, which pickled functions name."""
    if "CASPARIAN_PLUGIN_FILE" not in os.environ:
        # With a worker of the reference system the working directory is not the job's own.
        return hide_main()
    text = CHILD_MODULE.format(shim=SHIM_MODULE, path=OURS, source=source, filename=filename)
    provide_modules(os.getcwd(), {PLUGIN_MODULE: text})


def provide_sdk_to_children(parent):
    """Lets child processes import the SDK and the shim, which the modules of a folder import. They find the
    modules themselves by the same `sys.path`."""
    sdk = f"from {SHIM_MODULE} import BasePlugin, FileEvent, PluginMetadata\n"
    modules = {SHIM_MODULE: SHIM_STUB.format(path=OURS), "casparian_flow/__init__": "", "casparian_flow/sdk": sdk}
    provide_modules(parent, modules)


def hide_main():
    """Prevents a child process from running the shim as its main module."""
    sys.modules[SHIM_MODULE] = sys.modules[__name__]
    globals().pop("__file__", None)


def provide_modules(parent, modules):
    hide_main()
    folder = os.path.join(parent, MODULE_FOLDER)
    try:
        os.mkdir(folder, 0o700)
        own = lambda path, flags: os.open(path, flags, 0o600)
        for name, text in modules.items():
            path = os.path.join(folder, name + ".py")
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with open(path, "w", encoding="ascii", opener=own) as file:
                file.write(text)
    except OSError:
        # Without disk space only plugins that start such children fail.
        return
    sys.path.append(folder)


def forget_parent():
    """Runs in a forked child: removes what the parent has registered for its own exit."""
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    for module, name in (("multiprocessing.util", "_exit_function"), ("logging", "shutdown")):
        if module in sys.modules:
            atexit.register(getattr(sys.modules[module], name))


def awaited(result):
    """The result of an `async def` handler, as that of another handler."""
    if hasattr(result, "__aiter__"):
        return of_async(result)
    if hasattr(result, "__await__"):
        # Runs to the end: tasks that it has started are awaited there.
        return list(of_async(once(result)))[0]
    return result


async def once(result):
    yield await result


def of_async(results):
    """The items of an async iterator. Tasks and timers that are left at its end are awaited."""
    import asyncio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    items = results.__aiter__()
    try:
        while True:
            try:
                item = loop.run_until_complete(items.__anext__())
            except StopAsyncIteration:
                break
            yield item
        wait_for_rest(loop)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        asyncio.set_event_loop(None)


def wait_for_rest(loop):
    """Runs the tasks that are left in a loop, and its timers that can publish."""
    import asyncio

    until = time.monotonic() + DAEMONS_WAIT
    while True:
        rest = asyncio.all_tasks(loop)
        if rest:
            loop.run_until_complete(asyncio.gather(*rest))
            until = time.monotonic() + DAEMONS_WAIT
            continue
        # Runs the callbacks of the tasks that ended last.
        loop.run_until_complete(asyncio.sleep(0))
        left = [handle.when() - loop.time() for handle in timers_of(loop) if can_publish(handle)]
        if not left and not asyncio.all_tasks(loop):
            return
        wait = max(0.0, min(left, default=0.0))
        if time.monotonic() + wait > until:
            raise RuntimeError(
                f"a timer of asyncio that can publish is due {wait:.0f} s after the handler has returned: let the"
                " handler wait for it, or cancel it")
        loop.run_until_complete(asyncio.sleep(wait))


def can_publish(handle):
    reach = Reach(())
    reach.add_all((handle._callback, *(handle._args or ())))
    reach.follow()
    return reach.found


def watch_low_threads(note):
    """Makes `_thread.start_new_thread` wait until the thread runs, as `threading` does. So it can be
    found. `note` is called with what the plugin raises in it."""
    import _thread

    start = _thread.start_new_thread

    def start_new_thread(function, args, kwargs=None):
        begun = _thread.allocate_lock()
        begun.acquire()

        def run():
            begun.release()
            try:
                function(*args, **(kwargs or {}))
            except SystemExit:
                pass
            except BaseException as error:
                if is_of_plugin(error):
                    note(error, "in a thread that the plugin has started")
                raise

        ident = start(run, ())
        begun.acquire()
        return ident

    _thread.start_new_thread = _thread.start_new = start_new_thread


class Work:
    """Watches the work that the plugin starts, and waits for it."""

    def __init__(self, bridge):
        self.bridge = bridge
        self.errors = []
        self.helpers = {id(helper) for helper in helpers()}
        self.show = threading.excepthook
        threading.excepthook = self.handle_thread_error
        self.tasks = Tasks(self.note)
        watch_low_threads(self.note)

    def note(self, error, where):
        """Keeps an exception. It fails the job after its handler has returned."""
        if error is None or len(self.errors) >= LOST_MAX or any(error is known for known in self.errors):
            return
        add_note(error, where)
        self.errors.append(error)

    def handle_thread_error(self, arguments):
        thread = arguments.thread
        counts = thread is None or not thread.daemon or thread in self.bridge.publishers
        if not counts:
            frames = [frame for frame, _line in traceback.walk_tb(arguments.exc_traceback)]
            counts = Reach(frames).found
        if counts and not issubclass(arguments.exc_type, SystemExit):
            name = "" if thread is None else f" {thread.name!r}"
            self.note(arguments.exc_value, f"in the thread{name}, which the plugin has started")
        self.show(arguments)

    def finish(self):
        """Waits for all work that still runs. The worker bounds this by the time-out of the job."""
        self.join_threads()
        for end in reversed(list(getattr(threading, "_threading_atexits", ()))):
            # Executors complete their submitted tasks and accept no more.
            end()
        self.join_threads()
        self.join_children()
        self.join_pools()
        self.run_exit_functions()
        self.join_threads()
        self.tasks.finish()
        if self.errors:
            raise self.errors[0]
        Daemons(self.bridge).settle()
        if self.errors:
            raise self.errors[0]

    def join_threads(self):
        """Joins the plugin's threads, including those that these have started. Threads of executors are left
        out, because they wait for tasks."""
        own = threading.current_thread()
        is_reported = set()
        while True:
            known = executor_threads()
            left = [thread for thread in threading.enumerate()
                    if not thread.daemon and thread is not own and thread not in known]
            if not left:
                return
            left[0].join(NAMES_AFTER)
            if left[0].is_alive() and left[0] not in is_reported:
                is_reported.add(left[0])
                self.bridge.warn(f"the job waits for the thread {left[0].name!r}, which the plugin has started")

    def join_children(self):
        """Joins processes of multiprocessing that are not daemons."""
        process = sys.modules.get("multiprocessing.process")
        for child in list(process._children) if process else ():
            if child.daemon:
                continue
            child.join()
            if child.exitcode:
                self.note(
                    RuntimeError(f"the child process {child.name!r} ended with exit code {child.exitcode}"),
                    "the plugin has not joined it")

    def join_pools(self):
        """Waits for the tasks of multiprocessing's pools of threads and of processes."""
        start = time.monotonic()
        while pool_tasks():
            if time.monotonic() - start > NAMES_AFTER:
                self.bridge.warn("the job waits for tasks of a multiprocessing pool")
            time.sleep(DAEMONS_POLL)

    def run_exit_functions(self):
        show = sys.unraisablehook

        def hook(unraisable):
            if "atexit" in (unraisable.err_msg or ""):
                self.note(unraisable.exc_value, "in an atexit function")
            show(unraisable)

        sys.unraisablehook = hook
        try:
            atexit._run_exitfuncs()
        except BaseException as error:  # Python 3.9 and older raise it
            self.note(error, "in an atexit function")
        finally:
            sys.unraisablehook = show


def pool_tasks():
    """The unfinished results of pools. They are found in the frames of each pool's threads."""
    found = {}
    for frame in sys._current_frames().values():
        for frame in stack_of(frame):
            if frame.f_globals.get("__name__") == "multiprocessing.pool":
                cache = frame.f_locals.get("cache")
                found.update(cache if isinstance(cache, dict) else {})
    return list(found.values())


def add_note(error, text):
    notes = getattr(error, "__notes__", None)
    try:
        error.__notes__ = [*(notes if isinstance(notes, list) else []), text]
    except Exception:  # the exception cannot be changed
        pass


def executor_threads():
    """Threads that wait for tasks until their executors are shut down."""
    found = set()
    for name, module in list(sys.modules.items()):
        if name.endswith(("concurrent.futures.thread", "concurrent.futures.process", "loky.process_executor")):
            for table in ("_threads_queues", "_threads_wakeups"):
                found.update(getattr(module, table, None) or ())
    return found


def helpers():
    """The running helper processes of multiprocessing: its resource trackers and its fork server."""
    found = []
    for name, module in list(sys.modules.items()):
        for end in ("forkserver", "resource_tracker"):
            helper = getattr(module, f"_{end}", None) if name.endswith(f".{end}") else None
            if helper is not None and getattr(helper, f"_{end}_pid", getattr(helper, "_pid", None)):
                found.append(helper)
    return found


def end_helpers(known):
    """Ends the children and helper processes of multiprocessing. Its resource tracker removes its files in
    /dev/shm when it ends by itself. `known`: IDs of the helpers of the parent, which are left."""
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return

    def end():
        try:
            util._run_finalizers()
            for child in list(sys.modules["multiprocessing.process"]._children):
                child.kill()
            for helper in helpers():
                if id(helper) not in known and hasattr(helper, "_stop"):
                    helper._stop()
        except Exception:  # the worker kills them with the job
            pass

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(HELPERS_WAIT)
