"""Daemon threads, which would end with the process while they may still publish.

Concatenated with `shim.py` into one program. When Python exits, its daemon threads and those of `_thread` end
at any point of their code. `Daemons` waits for those that can publish, and fails the job if one does not
finish.

A thread can publish if the context can be reached from its code (`Reach`): by the names in its functions,
looked up in its variables, in the objects that these reference, and in the modules of the plugin. It has
nothing to do if it waits without a time-out for an empty queue, a condition or an event, or if it has
completed one wait of its own for an empty queue; and if no list that its functions fill and empty has values.
"""

import collections
import dis
import functools
import itertools
import os
import sys
import threading
import time
import types

# Seconds in which threads that can publish have to finish, in addition to the time-outs of their own waits.
# Time in which data is published does not count.
DAEMONS_WAIT = 10.0
DAEMONS_POLL = 0.02
# Limit of the values and names that are followed from a thread's frames, and of the items of a list or dict.
REACHED_MAX = 500
ITEMS_MAX = 100
# Methods that are called without being named.
IMPLICIT = ("__call__", "__iter__", "__next__", "__enter__", "__exit__", "__getitem__", "__setitem__")
GROWS = ("append", "appendleft", "extend", "insert")
EMPTIES = ("clear", "pop", "popleft")
SINGLE = (type(None), bool, int, float, complex, str, bytes, bytearray)
STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep


def is_of_plugin_module(space):
    """True for the namespace of the plugin's code: its own module, other modules that belong to no library,
    and code that it has compiled."""
    name, path = space.get("__name__"), space.get("__file__")
    if name == PLUGIN_MODULE:
        return True
    if not isinstance(path, str):
        return isinstance(name, str) and name not in sys.modules and "." not in name
    folders = path.split(os.sep)
    is_installed = "site-packages" in folders or "dist-packages" in folders
    return not is_installed and not path.startswith((STANDARD_LIBRARY, "<")) and path != OURS


def stack_of(frame):
    """The frames of a thread, innermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def cells_of(function):
    """The variables of enclosing functions that a function uses."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # the cell is empty
            pass
    return found


def timers_of(loop):
    """What `call_later` and `call_at` have scheduled in an event loop."""
    return [handle for handle in items_of(getattr(loop, "_scheduled", ())) if not handle.cancelled()]


def package_of(space):
    return str(space.get("__name__")).partition(".")[0]


def member(value, name):
    """An attribute of a value, looked up without running code of its class."""
    kind = type(value)
    classes = value.__mro__ if kind is type else kind.__mro__
    try:
        found = object.__getattribute__(value, "__dict__").get(name)
    except Exception:  # the value has no __dict__
        found = None
    if found is None:
        found = next((cls.__dict__[name] for cls in classes if name in cls.__dict__), None)
    if type(found) is types.MemberDescriptorType and kind is not type:
        try:
            found = found.__get__(value)
        except AttributeError:
            found = None
    return found


def items_of(values):
    try:
        return list(itertools.islice(values, ITEMS_MAX))
    except RuntimeError:  # another thread changes the values; the next poll tries again
        return []


def names_of(step):
    """The names in an instruction. Some instructions have two."""
    return step.argval if isinstance(step.argval, tuple) and step.argval else (step.argval,)


class Reach:
    """What a thread's code can reach. `found`: it reaches the context, or one of the `targets` (by ID)."""

    def __init__(self, frames, targets=()):
        self.found = False
        self.targets = targets
        self.names, self.values, self.spaces = set(), {}, {}
        # Names of variables to which the code adds values, and of those that it sets or empties.
        self.grown, self.emptied = set(), set()
        # Packages of libraries whose code the thread runs.
        self.packages = {package_of(frame.f_globals) for frame in frames} - {"threading", "queue", "__main__"}
        is_started = any(self.follows(frame.f_globals) for frame in frames)
        for frame in frames:
            space, function = frame.f_globals, frame.f_code.co_name
            if space is globals():
                receiver = frame.f_locals.get("self")
                self.found = self.found or isinstance(receiver, (Context, Bridge))
            elif self.follows(space):
                self.use_frame(frame)
            elif package_of(space) == "asyncio" and function == "run_forever" or function == "run" and not is_started:
                self.use_frame(frame)
        self.follow()

    def follows(self, space):
        if is_of_plugin_module(space):
            return True
        path = space.get("__file__")
        is_standard = not isinstance(path, str) or path.startswith(STANDARD_LIBRARY) \
            and "site-packages" not in path
        return not is_standard and package_of(space) in self.packages

    def follow(self):
        while not self.found:
            before = len(self.names), len(self.values), len(self.spaces)
            for value in list(self.values.values()):
                self.add_all(member(value, name) for name in list(self.names))
            for space in list(self.spaces.values()):
                self.add_all(space.get(name) for name in list(self.names))
            if before == (len(self.names), len(self.values), len(self.spaces)):
                return

    def use_frame(self, frame):
        """Follows the code of a frame, and the variables that it loads."""
        self.use(frame.f_code, frame.f_globals)
        loaded = {name for step in dis.get_instructions(frame.f_code) if "LOAD_" in step.opname
                  for name in names_of(step)}
        self.add_all(value for name, value in dict(frame.f_locals).items() if name in loaded)

    def use(self, code, space):
        """Follows the names in a function's code."""
        if len(self.names) < REACHED_MAX:
            self.names.update(code.co_names)
        if is_of_plugin_module(space):
            self.found = self.found or "publish" in code.co_names
            self.spaces[id(space)] = space
        self.watch_lists(code)
        for inner in code.co_consts:
            if type(inner) is types.CodeType:
                self.use(inner, space)

    def watch_lists(self, code):
        steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
        for index, step in enumerate(steps):
            name = names_of(steps[index - 1])[-1]
            is_attribute = step.opname in ("LOAD_ATTR", "LOAD_METHOD")
            if is_attribute and step.argval in GROWS:
                self.grown.add(name)
            elif is_attribute and step.argval in EMPTIES:
                self.emptied.add(name)
            elif step.opname.startswith("STORE_"):
                self.emptied.update(names_of(step))
                if "INPLACE" in steps[index - 1].opname or "+=" in (steps[index - 1].argrepr or ""):
                    self.grown.add(names_of(step)[0])

    def add_all(self, values):
        for value in values:
            self.add(value)

    def add(self, value):
        kind = type(value)
        if kind in SINGLE or id(value) in self.values or len(self.values) >= REACHED_MAX:
            return
        if issubclass(kind, (Context, Bridge)) or id(value) in self.targets:
            self.found = True
            return
        if kind is types.ModuleType and not is_of_plugin_module(vars(value)):
            return
        self.values[id(value)] = value
        if kind is types.MethodType:
            self.add_all((value.__self__, value.__func__))
        elif kind is types.FunctionType:
            self.add_function(value)
        elif kind is functools.partial:
            self.add_all((value.func, *value.args, *value.keywords.values()))
        elif kind is property:
            self.add(value.fget)
        elif kind in (staticmethod, classmethod):
            self.add(value.__func__)
        elif issubclass(kind, dict):
            self.add_all(items_of(value.values()))
        elif issubclass(kind, (list, tuple, set, frozenset, collections.deque)):
            self.add_all(items_of(value))
        elif kind in (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType):
            names = ("gi_frame", "cr_frame", "ag_frame")
            frame = next((getattr(value, name) for name in names if hasattr(value, name)), None)
            if frame is not None:
                self.use_frame(frame)
        elif kind is types.BuiltinFunctionType:
            self.add(value.__self__)
        elif is_of(value, "asyncio", "AbstractEventLoop"):
            self.add_all(task.get_coro() for task in sys.modules["asyncio"].all_tasks(value))
            for handle in [*items_of(getattr(value, "_ready", ())), *timers_of(value)]:
                self.add_all((handle._callback, *(handle._args or ())))
        else:
            module = sys.modules.get(module_of(value if kind is type else kind))
            if module is None or self.follows(vars(module)):
                self.add_all(member(value, name) for name in IMPLICIT)

    def add_function(self, function):
        if self.follows(function.__globals__):
            self.use(function.__code__, function.__globals__)
        self.add_all(function.__defaults__ or ())
        self.add_all(cells_of(function).values())

    def filled(self, frames):
        """The name of a list that the code fills and empties and that is not empty, or None."""
        spaces = [frame.f_locals for frame in frames if self.follows(frame.f_globals)]
        spaces += [cells_of(value) for value in self.values.values() if type(value) is types.FunctionType]
        spaces += [getattr(value, "__dict__", None) for value in self.values.values()]
        spaces += self.spaces.values()
        for name in sorted(name for name in self.grown & self.emptied if isinstance(name, str)):
            for space in spaces:
                held = (space or {}).get(name)
                if isinstance(held, (list, collections.deque)) and len(held) > 0:
                    return name
        return None


class Wait:
    """A wait of a thread: its target, its time-out, and the lock that was created only for this wait."""

    def __init__(self, frames):
        self.lock, self.target, self.timeout, self.is_queue = None, None, None, False
        for frame in frames:
            module, name = frame.f_globals.get("__name__"), frame.f_code.co_name
            if module == "queue" and name == "get" or module == "threading" and name in ("wait", "wait_for"):
                self.lock = self.lock or frame.f_locals.get("waiter")
                self.target = frame.f_locals.get("self")
                self.timeout = frame.f_locals.get("timeout")
                self.is_queue = module == "queue"
            else:
                # A thread that waits to put a value into a queue still has something to do.
                if module == "queue":
                    self.lock = None
                break
        if self.is_queue and self.target._qsize():
            self.lock = None


class Daemons:
    """Waits for the threads that would end with the process."""

    def __init__(self, bridge):
        self.bridge = bridge
        # By thread: the locks of its last two waits since the handler returned, each with the rows published
        # then.
        self.waits = collections.defaultdict(list)
        self.timeout = 0.0
        self.is_publishing = False
        self.threads = {}
        self.harmless = []

    def settle(self):
        last, passed = time.monotonic(), 0.0
        while True:
            busy = self.busy()
            if not busy:
                break
            now = time.monotonic()
            passed, last = passed + (0.0 if self.is_publishing else now - last), now
            ident, reason = next(iter(busy.items()))
            if passed > max(DAEMONS_WAIT, 2 * self.timeout + 1):
                raise RuntimeError(
                    f"the {self.name(ident)} {reason} when the handler has returned: let the handler wait for"
                    " it (`thread.join()`, `queue.join()`), or do not make it a daemon")
            if passed > NAMES_AFTER:
                self.bridge.warn(f"the job waits for the {self.name(ident)}, which can publish")
            time.sleep(DAEMONS_POLL)
        for ident in self.harmless:
            self.bridge.warn(f"the {self.name(ident)} still runs when the handler has returned; it ends with the job")

    def name(self, ident):
        thread = self.threads.get(ident)
        return "daemon thread" if thread is None else f"daemon thread {thread.name!r}"

    def busy(self):
        """The threads that can publish and have something to do: what each does, by its ident."""
        self.threads = {thread.ident: thread for thread in threading.enumerate()}
        stacks = {ident: stack_of(frame) for ident, frame in sys._current_frames().items()
                  if ident != threading.get_ident()}
        waits = {ident: Wait(frames) for ident, frames in stacks.items()}
        busy, targets = {}, {}
        left = dict(stacks)
        self.is_publishing = any(
            frame.f_globals is globals() and isinstance(frame.f_locals.get("self"), Bridge)
            for frames in stacks.values() for frame in frames)
        while True:
            found = {}
            for ident, frames in left.items():
                reach = self.reach(ident, frames, targets)
                if reach is not None and reach.found:
                    found[ident] = reach
            for ident, reach in found.items():
                reason = self.reason(ident, left.pop(ident), waits[ident], reach)
                if reason:
                    busy[ident] = reason
                if waits[ident].is_queue:
                    targets[id(waits[ident].target)] = waits[ident].target
            # Repeated, because other threads may give work to those that wait.
            if not found:
                break
        self.harmless = [
            ident for ident, frames in left.items()
            if waits[ident].lock is None and any(is_of_plugin_module(frame.f_globals) for frame in frames)]
        return busy

    def reach(self, ident, frames, targets):
        """What a thread can reach; None for a thread that is not a daemon or is idle in a pool."""
        thread = self.threads.get(ident)
        if thread is not None and not thread.daemon and not isinstance(thread, threading._DummyThread):
            return None
        if frames[0].f_globals.get("__name__") == "multiprocessing.pool":
            return None
        reach = Reach(frames, targets)
        is_own = any(is_of_plugin_module(frame.f_globals) for frame in frames)
        reach.found = reach.found or is_own and thread in self.bridge.publishers
        return reach

    def reason(self, ident, frames, wait, reach):
        """What a thread that can publish does; None if it has nothing to do."""
        if wait.lock is None:
            return "can publish and still runs"
        filled = reach.filled(frames)
        if filled:
            self.timeout = max(self.timeout, wait.timeout or 0)
            return f"waits with values in {filled!r} that it may not have published"
        if wait.timeout is None:
            return None
        self.timeout = max(self.timeout, wait.timeout)
        seen = self.waits[ident]
        if not seen or seen[-1][0] is not wait.lock:
            seen[:] = [*seen[-1:], (wait.lock, self.bridge.rows)]
        is_through = wait.is_queue and len(seen) == 2 and seen[0][1] == seen[1][1]
        return None if is_through else "can publish and still runs"
