"""Failed tasks whose results the plugin has not asked for: of executors, of asyncio, of multiprocessing's pools.

Concatenated with `shim.py` into one program. A task counts if the plugin's code has submitted it or has raised
in it. The classes of a module are changed when the module is imported.
"""

import gc
import sys
import weakref

# Limit of failures that are kept until the plugin asks for them.
LOST_MAX = 1000
IN_EXECUTOR = "in a task of an executor; the plugin has not asked for its result"
IN_POOL = "in a task of a pool; the plugin has not asked for its result"
IN_LOOP = "in a task of asyncio; the plugin has not awaited it"
IN_CALLBACK = "in a callback of asyncio"


class Tasks:
    """The failures. `note(error, where)` is called for those that asyncio reports by itself, and by `finish` for
    the others."""

    def __init__(self, note):
        self.note = note
        # The task, its exception and its kind, until the plugin asks for it.
        self.lost = {}
        # Weak references to failed tasks of asyncio, which know whether they were asked for.
        self.failed = []
        on_import("concurrent.futures._base", self.watch_futures)
        on_import("asyncio.base_events", self.watch_loops)
        on_import("logging", self.watch_log)
        on_import("multiprocessing.pool", self.watch_pools)

    def finish(self):
        if "asyncio" in sys.modules:
            # Failed tasks are in reference cycles with their exceptions. asyncio reports those that are removed.
            gc.collect()
        for reference in self.failed:
            task = reference()
            if task is not None and task.done() and not task.cancelled() and task._log_traceback:
                self.note(task.exception(), IN_LOOP)
        for _task, error, where in list(self.lost.values()):
            self.note(error, where)

    def keep(self, key, task, error, where, broken=()):
        is_own = getattr(task, "casparian_is_own", False)
        if error is not None and len(self.lost) < LOST_MAX and (is_own or is_of_plugin(error, broken)):
            self.lost.setdefault(key, (task, error, where))

    def watch_futures(self, base):
        future, lost = base.Future, self.lost

        def init(self, init=future.__init__):
            init(self)
            self.casparian_is_own = is_asked_by_plugin(sys._getframe(1))

        def set_exception(future, error, set_exception=future.set_exception):
            self.keep(id(future), future, error, IN_EXECUTOR, base.BrokenExecutor)
            set_exception(future, error)

        def asking(ask):
            def asked(future, *args, **options):
                try:
                    return ask(future, *args, **options)
                finally:
                    caller = sys._getframe(1)
                    if future.done() and lost.pop(id(future), None) and caller.f_code.co_name == "_copy_future_state":
                        # asyncio has asked, for a future of its own.
                        self.pass_on(caller.f_locals.get("dest"))
            return asked

        future.__init__ = init
        future.set_exception = set_exception
        for name in ("result", "exception", "_get_snapshot"):
            if hasattr(future, name):
                setattr(future, name, asking(getattr(future, name)))

    def pass_on(self, future):
        try:
            future.casparian_is_own = True
            self.failed.append(weakref.ref(future))
        except (AttributeError, TypeError):  # of another loop
            pass

    def watch_loops(self, module):
        loops = module.BaseEventLoop
        create, report = loops.create_task, loops.call_exception_handler

        def ended(task):
            is_lost = not task.cancelled() and getattr(task, "_log_traceback", False)
            if is_lost and (task.casparian_is_own or is_of_plugin(task._exception)) and len(self.failed) < LOST_MAX:
                self.failed.append(weakref.ref(task))

        def create_task(loop, *args, **options):
            task = create(loop, *args, **options)
            try:
                task.casparian_is_own = is_asked_by_plugin(sys._getframe(1))
                task.add_done_callback(ended)
            except AttributeError:  # of the plugin's own factory
                pass
            return task

        def call_exception_handler(loop, context):
            if loop._exception_handler is None:
                self.reported(str(context.get("message")), context.get("exception"), context.get("future"))
            report(loop, context)

        loops.create_task = create_task
        loops.call_exception_handler = call_exception_handler

    def watch_log(self, logging):
        """For loops of other libraries, which report to the same logger."""
        def watch(record):
            self.reported(str(record.msg), record.exc_info[1] if record.exc_info else None, None)
            return True

        logging.getLogger("asyncio").addFilter(watch)

    def reported(self, message, error, future):
        """Called for what an event loop reports."""
        is_callback = message.startswith("Exception in callback")
        is_lost = is_callback or message.partition("\n")[0].endswith("exception was never retrieved")
        if is_lost and (getattr(future, "casparian_is_own", False) or is_of_plugin(error)):
            self.note(error, IN_CALLBACK if is_callback else IN_LOOP)

    def watch_pools(self, pools):
        lost, keep = self.lost, self.keep

        def watched(kind):
            def init(self, *args, init=kind.__init__, **options):
                self.casparian_is_own = is_asked_by_plugin(sys._getframe(1))
                init(self, *args, **options)
            kind.__init__ = init

        def setting(kind, key_of):
            # Kept before: as soon as the result is set, another thread may ask for it.
            def set_result(self, index, result, set_result=kind._set):
                succeeded, value = result
                if not succeeded and not getattr(self, "_error_callback", None):
                    keep(key_of(self, value), self, value, IN_POOL)
                set_result(self, index, result)
            kind._set = set_result

        def asking(ask):
            def asked(self, *args, **options):
                try:
                    return ask(self, *args, **options)
                finally:
                    if self.ready():
                        lost.pop(id(self), None)
            return asked

        def next_item(self, *args, next_item=pools.IMapIterator.next, **options):
            try:
                return next_item(self, *args, **options)
            except BaseException as error:
                lost.pop((id(self), id(error)), None)
                raise

        results, items = pools.ApplyResult, pools.IMapIterator
        watched(results)
        watched(items)
        for kind in (results, pools.MapResult):
            setting(kind, lambda task, error: id(task))
        for kind in (items, pools.IMapUnorderedIterator):
            setting(kind, lambda task, error: (id(task), id(error)))
        results.get, results.successful = asking(results.get), asking(results.successful)
        items.next = items.__next__ = next_item


def is_asked_by_plugin(frame):
    """True if the plugin's code starts a task, directly or by the standard library."""
    while frame is not None and is_passed_on(frame):
        frame = frame.f_back
    return frame is not None and is_of_plugin_module(frame.f_globals)


def is_passed_on(frame):
    return package_of(frame.f_globals) in ("concurrent", "asyncio", "multiprocessing") or frame.f_globals is globals()


def is_of_plugin(error, broken=()):
    """True if a task's exception came from the plugin's code, from another process or from a broken pool.
    Other failures are ignored, because libraries have tasks of their own whose failures they expect."""
    if error is None:
        return False
    if isinstance(error, broken) or type(error.__cause__).__name__ == "_RemoteTraceback":
        return True
    trace = error.__traceback__
    while trace is not None:
        if is_of_plugin_module(trace.tb_frame.f_globals):
            return True
        trace = trace.tb_next
    return False


def on_import(name, act):
    """Calls `act` with a module, now or when it is imported."""
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, Importing(name, act))


class Importing:
    """Finds one module as the other finders do, and calls `act` with it after its code has run."""

    def __init__(self, name, act):
        self.name, self.act = name, act

    def find_spec(self, name, path=None, target=None):
        if name != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                self.extend(spec.loader)
                return spec
        return None

    def extend(self, loader):
        # The loaders of frozen modules are classes, for all such modules.
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return
        run = loader.exec_module

        def exec_module(module):
            run(module)
            self.act(module)

        loader.exec_module = exec_module
