"""The plugin's work beside its handler: threads, executors, atexit functions and child processes.

Concatenated with `shim.py` into one program. Such work is awaited before the output ends, in the order
of an ordinary Python process, and what it raises fails the job. Children that multiprocessing starts
afresh find the plugin as a module.
"""

import atexit
import os
import sys
import threading
import weakref

# Failures of tasks that are kept until the plugin asks for them.
LOST_MAX = 1000
# Seconds until the log names a thread that the job waits for.
NAMES_AFTER = 2.0
# Seconds in which helper processes of multiprocessing must end before they are killed.
HELPERS_WAIT = 5.0
# In the working directory: a folder with the plugin as a module.
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
# The shim as a module of a child process.
SHIM_STUB = """\
__file__ = {path!a}
with open(__file__, "rb") as file:
    exec(compile(file.read(), __file__, "exec"))
"""


def provide_to_children(source, filename):
    """Lets child processes import the plugin, which pickled functions name."""
    if "CASPARIAN_PLUGIN_FILE" not in os.environ:
        # A worker of the old system: the working directory is not the job's own.
        return hide_main()
    text = CHILD_MODULE.format(shim=SHIM_MODULE, path=OURS, source=source, filename=filename)
    provide_modules(os.getcwd(), {PLUGIN_MODULE: text})


def provide_sdk_to_children(parent):
    """Lets child processes import what the modules of a folder import of ours. They find the modules
    themselves by the same `sys.path`."""
    sdk = f"from {SHIM_MODULE} import BasePlugin, FileEvent, PluginMetadata\n"
    modules = {SHIM_MODULE: SHIM_STUB.format(path=OURS), "casparian_flow/__init__": "", "casparian_flow/sdk": sdk}
    provide_modules(parent, modules)


def hide_main():
    """A child process must not run the shim as its main module."""
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
        # Without room only plugins that start such children fail.
        return
    sys.path.append(folder)


def forget_parent():
    """In a forked child: what the parent registered for its own end is not the child's."""
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    for module, name in (("multiprocessing.util", "_exit_function"), ("logging", "shutdown")):
        if module in sys.modules:
            atexit.register(getattr(sys.modules[module], name))


def awaited(result):
    """What an `async def` handler gives, as others give it."""
    if hasattr(result, "__aiter__"):
        return of_async(result)
    if hasattr(result, "__await__"):
        # To its end: tasks that it has started are awaited there.
        return list(of_async(once(result)))[0]
    return result


async def once(result):
    yield await result


def of_async(results):
    """The items of an async iterator. Tasks that still run at its end are awaited."""
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
        rest = asyncio.all_tasks(loop)
        if rest:
            loop.run_until_complete(asyncio.gather(*rest))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        asyncio.set_event_loop(None)


class Work:
    """Watches what the plugin starts, and waits for it."""

    def __init__(self, bridge):
        self.bridge = bridge
        self.errors = []
        # Failures of tasks of executors by their future's ID, until somebody asks for them.
        self.lost = {}
        self.helpers = {id(helper) for helper in helpers()}
        self.show = threading.excepthook
        threading.excepthook = self.handle_thread_error
        self.watch_futures()

    def note(self, error, where):
        """Keeps an exception that fails the job when its handler has returned."""
        if error is None or len(self.errors) >= LOST_MAX:
            return
        add_note(error, where)
        self.errors.append(error)

    def handle_thread_error(self, arguments):
        thread = arguments.thread
        counts = thread is None or not thread.daemon or thread in self.bridge.publishers
        if counts and not issubclass(arguments.exc_type, SystemExit):
            name = "" if thread is None else f" {thread.name!r}"
            self.note(arguments.exc_value, f"in the thread{name}, which the plugin has started")
        self.show(arguments)

    def watch_futures(self):
        from concurrent.futures import _base

        future, lost = _base.Future, self.lost

        def set_exception(self, error, set_exception=future.set_exception):
            if error is not None and len(lost) < LOST_MAX and is_of_plugin(error, _base.BrokenExecutor):
                lost[id(self)] = (self, error)
            set_exception(self, error)

        def asking(ask):
            def asked(self, timeout=None):
                try:
                    return ask(self, timeout)
                finally:
                    if self.done():
                        lost.pop(id(self), None)
            return asked

        future.set_exception = set_exception
        future.result = asking(future.result)
        future.exception = asking(future.exception)

    def finish(self):
        """Waits for what still runs. The engine's time-out of the job bounds it."""
        self.join_threads()
        for end in reversed(list(getattr(threading, "_threading_atexits", ()))):
            # Executors: what was submitted is done, and nothing more is taken.
            end()
        self.join_threads()
        self.join_children()
        self.run_exit_functions()
        self.join_threads()
        for _future, error in list(self.lost.values()):
            self.note(error, "in a task of an executor; the plugin has not asked for its result")
        if self.errors:
            raise self.errors[0]
        self.check_daemons()

    def join_threads(self):
        """Joins the plugin's threads, those too that these have started; not those of executors, which
        wait for tasks."""
        own = threading.current_thread()
        is_told = set()
        while True:
            known = executor_threads()
            left = [thread for thread in threading.enumerate()
                    if not thread.daemon and thread is not own and thread not in known]
            if not left:
                return
            left[0].join(NAMES_AFTER)
            if left[0].is_alive() and left[0] not in is_told:
                is_told.add(left[0])
                self.bridge.warn(f"the job waits for the thread {left[0].name!r}, which the plugin has started")

    def join_children(self):
        """Joins processes of multiprocessing that are no daemons."""
        process = sys.modules.get("multiprocessing.process")
        for child in list(process._children) if process else ():
            if child.daemon:
                continue
            child.join()
            if child.exitcode:
                self.note(
                    RuntimeError(f"the child process {child.name!r} ended with exit code {child.exitcode}"),
                    "the plugin has not joined it")

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

    def check_daemons(self):
        """Python ends with its daemon threads wherever they are: one that publishes would lose rows."""
        threads = {thread.ident: thread for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            thread = threads.get(ident)
            if ident == threading.get_ident() or not is_at_work(frame, thread in self.bridge.publishers):
                continue
            name = "" if thread is None else f" {thread.name!r}"
            raise RuntimeError(
                f"the daemon thread{name} publishes and still runs when the handler has returned: join it,"
                " or do not make it a daemon")


def is_at_work(frame, has_published):
    """True for a thread that runs the plugin's code and publishes. One that waits for an empty queue has
    done what it was given."""
    while frame is not None:
        code, space = frame.f_code, frame.f_globals
        if space.get("__name__") == "queue" and code.co_name == "get":
            queue = frame.f_locals.get("self")
            if queue is not None and not queue._qsize():
                return False
        if is_of_plugin_module(space) and (has_published or "publish" in code.co_names):
            return True
        frame = frame.f_back
    return False


def is_of_plugin(error, broken):
    """True when a task's exception came from the plugin's code, from a process or from a broken pool:
    libraries have tasks of their own whose failures they expect."""
    if isinstance(error, broken) or type(error.__cause__).__name__ == "_RemoteTraceback":
        return True
    trace = error.__traceback__
    while trace is not None:
        if is_of_plugin_module(trace.tb_frame.f_globals):
            return True
        trace = trace.tb_next
    return False


def add_note(error, text):
    notes = getattr(error, "__notes__", None)
    try:
        error.__notes__ = [*(notes if isinstance(notes, list) else []), text]
    except Exception:  # the exception does not let itself be changed
        pass


def executor_threads():
    """Threads that wait for tasks until their executors are told to end."""
    found = set()
    for name, module in list(sys.modules.items()):
        if name.endswith(("concurrent.futures.thread", "concurrent.futures.process", "loky.process_executor")):
            for table in ("_threads_queues", "_threads_wakeups"):
                found.update(getattr(module, table, None) or ())
    return found


def helpers():
    """Helper processes of multiprocessing that run: its resource trackers and its fork server."""
    found = []
    for name, module in list(sys.modules.items()):
        for end in ("forkserver", "resource_tracker"):
            helper = getattr(module, f"_{end}", None) if name.endswith(f".{end}") else None
            if helper is not None and getattr(helper, f"_{end}_pid", getattr(helper, "_pid", None)):
                found.append(helper)
    return found


def end_helpers(known):
    """Ends what multiprocessing keeps for the whole life of a process. Its resource tracker removes what
    is left in /dev/shm when it ends by itself. `known`: those of the parent, by their IDs."""
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
        except Exception:  # they are killed with the job
            pass

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(HELPERS_WAIT)
