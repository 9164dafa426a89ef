"""The program of a plugin process: runs one plugin over one file and sends its output over the bridge.

Concatenated with `outputs.py`, `values.py`, `work.py`, `daemons.py` and `folder.py` into one program (`SHIM`
in `mod.rs`).

Without arguments it runs one job, which these variables describe:

    BRIDGE_SOCKET            Unix socket of the worker
    BRIDGE_PLUGIN_CODE       source, base64
    BRIDGE_FILE_PATH, BRIDGE_JOB_ID, BRIDGE_FILE_VERSION_ID
    CASPARIAN_PLUGIN_FILE    file with the source; takes precedence over BRIDGE_PLUGIN_CODE
    CASPARIAN_PLUGIN_NAME    name of the plugin, for tracebacks
    CASPARIAN_PARAMETERS     parameters for `configure`: a JSON object (default: an empty one)
    CASPARIAN_MEMORY_MAX     address space in bytes

With `--warm FD MODULE...` or `--bare FD` it is a fork server: it forks a child for every request on the
seqpacket socket FD. `--warm` imports pyarrow and the modules first. A request is JSON {"job", "env", "cwd"}
with three file descriptors: the child's stdout, its stderr, and a file with the plugin's source. Paths and
values in a request are bytes, each written as the character with that number (see `path_bytes`). With "shim"
the child runs that program instead of this one. With "sandbox" it restricts itself first (see `contain`).
With "interpreter" it executes that interpreter after it has restricted itself. {"ping": number} is also a
request. Answers are JSON:

    {"ready": true}, {"pong": number}, {"started": job, "pid"}, {"failed": job, "message"},
    {"exited": job, "code" | "signal", "rss_max_kib"}

Before "exited" is sent, the child's descendants are killed, in whatever process group or session they are
(those that do not end within `STRAYS_WAIT` are killed further while the fork server continues). Each child is
a subreaper, so its descendants stay below it, and become children of the fork server when it ends. When the
worker's end of the socket closes, the fork server kills all of them and ends.

A frame is a u32 big-endian length, followed by one complete Arrow IPC stream. Length 0 ends the output.
Length 0xFFFFFFFF starts a failure: u32 length, UTF-8 text, then the 0. Length 0xFFFFFFFE starts the state of the
input file, as this process finds it before the plugin runs: seven i64 big-endian, the device, inode, size,
modification time and change time in ns, mode and number of links. Only Casparian's workers get it. The topic of published data is in the
schema's metadata under casparian.topic. A failure's text begins with "Type: message". If the fault was found
in the input before the plugin ran, it begins with "input: ". If the environment lacks pyarrow, which the shim
itself needs, it begins with "environment: ".

The last line of stdout is a JSON summary: the status, and for Casparian's workers rss_max_kib, the largest
resident size of the process.
"""

import base64
import io
import json
import mmap
import _signal
import _thread
import os
import socket
import struct
import stat
import sys
import threading
import time
import traceback
import types
import weakref

# A plugin may change builtins and modules. Copies of those that are needed after it has run are imported
# here.
from builtins import *
from os import _exit, getpid

FAILURE, INPUT = 0xFFFFFFFF, 0xFFFFFFFE
# Path of this file. The module names under which child processes can import it and the plugin.
OURS = os.path.abspath(__file__)
SHIM_MODULE = "casparian_shim"
PLUGIN_MODULE = "casparian_plugin"
IMPORTS = threading.RLock()
# Folders that are removed when the job ends.
OWN_FOLDERS = []
NOT_A_CHILD = "a child process of the plugin cannot publish: hand the data to the process that started it"
# Limit of distinct warnings that the shim writes to a job's log.
WARNINGS_MAX = 100
# Limits, in characters, of an exception's message, and of each note and cause.
MESSAGE_MAX = 8 << 10
LINE_MAX = 1 << 10
# Limits of a failure's text: frames of a traceback; notes, causes, and exceptions of a group.
FRAMES_MAX = 40
PARTS_MAX = 10
# Seconds for which a failure waits for a thread that is sending a frame.
FRAME_WAIT = 30
# Seconds for which a fork server waits for the end of an ended child's descendants. After that it continues,
# and kills them between requests.
STRAYS_WAIT = 1.0


def has_handlers():
    """True if the plugin has set handlers of signals that are Python functions."""
    own = (_signal.SIG_DFL, _signal.SIG_IGN, _signal.default_int_handler, None)
    return any(_signal.getsignal(number) not in own for number in range(1, _signal.NSIG))


class Bridge:
    """The connection to the worker."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        # Forked children of the plugin must not send output for the job.
        self.owner = getpid()
        os.register_at_fork(after_in_child=self.socket.close)
        # Shared with forked children. Set when one has tried to publish: the plugin may never check how it
        # ended.
        self.refused = mmap.mmap(-1, 1)
        self.rows = 0
        # Held while a frame is sent by any thread. Nothing is sent after the end.
        # Signal handlers and finalisers may publish within a publish of their thread.
        self.lock = threading.RLock()
        self.sending = False
        self.over = False
        self.failed = False
        # Threads that have sent data, and warnings that were logged.
        self.publishers = weakref.WeakSet()
        self.warned = set()
        # Metadata of the first schema of each topic.
        self.metadata = {}
        # Set when the worker has closed the bridge. It has the cause, so nothing is reported. Not set when
        # the plugin itself closes the socket.
        self.broken = False

    def write(self, *parts):
        """Sends all parts, also where a signal handler of the plugin raises an exception meanwhile: it is
        raised after them. Python runs handlers in the main thread alone."""
        if threading.current_thread() is not threading.main_thread() or not has_handlers():
            return self.send_all(parts)
        begun, wake, ended, failures = threading.Lock(), threading.Lock(), [], []
        wake.acquire()

        def send():
            # An interrupted start is repeated: one of the threads sends.
            if begun.acquire(blocking=False):
                self.send_all(parts, failures)
                ended.append(True)
                wake.release()

        interruption = None
        while not ended:
            try:
                if not begun.locked():
                    _thread.start_new_thread(send, ())
                # An exception may be raised after it was acquired.
                wake.acquire(timeout=0.1)
            except BaseException as error:  # of a handler, or no thread can be started
                if str(error) == "can't start new thread":
                    send()
                else:
                    interruption = interruption or error
        for error in failures + [interruption] * (interruption is not None):
            raise error

    def send_all(self, parts, failures=None):
        try:
            for part in parts:
                self.socket.sendall(part)
        except Exception as error:
            self.broken |= isinstance(error, (BrokenPipeError, ConnectionResetError))
            if failures is None:
                raise
            failures.append(error)

    def send(self, data, topic=None):
        """Sends what a plugin returned, yielded or published. Each table is sent as soon as it is
        produced."""
        if data is None:
            return
        if getpid() != self.owner:
            self.refused[0] = 1
            raise RuntimeError(NOT_A_CHILD)
        pa = import_pyarrow()
        for part in parts(data):
            frames = None
            for batch in batches(part, pa):
                if frames is None:
                    frames = Frames(batch.schema, pa, topic, self.warn)
                    self.compare_metadata(topic, frames.schema.metadata or {})
                for piece in frames.of(batch):
                    self.send_frame(piece, pa)

    def send_frame(self, batch, pa):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        frame = sink.getvalue()
        with self.lock:
            if self.sending:
                raise RuntimeError(
                    "a signal handler or finaliser published while its thread publishes: publish when that returns")
            if self.over:
                self.refuse_late()
            self.publishers.add(threading.current_thread())
            self.sending = True
            try:
                self.write(struct.pack("!I", frame.size), memoryview(frame))
            finally:
                self.sending = False
            self.rows += batch.num_rows

    def refuse_late(self):
        """Refuses data after the end of the output. A job that has not failed can then fail only by its exit
        code."""
        text = "data was published after the end of the job: let threads end before the handler returns"
        if not self.failed:
            try:
                print(f"RuntimeError: {text}", file=sys.stderr, flush=True)
            finally:
                _exit(1)
        raise RuntimeError(text)

    def compare_metadata(self, topic, metadata):
        """Warns of keys of a schema's metadata that have several values: they are left out of the file."""
        first = self.metadata.setdefault(topic, metadata)
        for key in first.keys() & metadata.keys() - {b"pandas", b"geo"}:
            if first[key] != metadata[key]:
                of = "the output" if topic is None else f"topic {topic!r}"
                self.warn(
                    f"metadata {key!r} of the schema differs between batches of {of} and was left out")

    def warn(self, text):
        """Writes one line to the job's log, the same line only once."""
        with self.lock:
            is_known = text in self.warned or len(self.warned) == WARNINGS_MAX
            self.warned.add(text)
        if not is_known:
            print(f"casparian: {text}", file=sys.stderr, flush=True)

    def end(self):
        with self.lock:
            self.over = True
            self.write(struct.pack("!I", 0))
            self.socket.close()

    def report_input(self, found):
        """Sends the state of the input file: the worker compares it with the file that it has checked."""
        values = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
                  found.st_mode, found.st_nlink)
        # The plugin has set no handlers of signals yet.
        self.send_all([struct.pack("!I7q", INPUT, *map(signed, values))])

    def fail(self, text):
        data = text.encode("utf-8", "backslashreplace")[: 1 << 20]
        if not self.lock.acquire(timeout=FRAME_WAIT):
            return
        try:
            if not self.over:
                self.over = self.failed = True
                self.write(struct.pack("!II", FAILURE, len(data)) + data + struct.pack("!I", 0))
                self.socket.close()
        finally:
            self.lock.release()


class Context:
    """The context that `configure` gets. It publishes to topics."""

    def __init__(self, bridge, job_id, file_version_id):
        self._bridge = bridge
        self._topics = []
        self._lock = threading.Lock()
        self.job_id = job_id
        self.file_version_id = file_version_id

    def __getstate__(self):
        """The state that a child process gets: all attributes except the bridge and the lock."""
        return {name: value for name, value in vars(self).items() if name not in ("_bridge", "_lock")}

    def __setstate__(self, state):
        vars(self).update(state, _bridge=None, _lock=threading.Lock())

    def register_topic(self, name, *_ignored, **_also_ignored):
        """Returns the handle of a topic."""
        if not isinstance(name, str) or not name:
            raise TypeError("a topic's name must be a string that is not empty")
        with self._lock:
            if name not in self._topics:
                self._topics.append(name)
            return self._topics.index(name)

    def publish(self, handle, data):
        """Sends data to a topic, given by its handle or its name."""
        if isinstance(handle, str):
            handle = self.register_topic(handle)
        try:
            topic = self._topics[handle]
        except (IndexError, TypeError):
            raise ValueError(f"no topic has the handle {handle!r}; register_topic gives one") from None
        if self._bridge is None:
            raise RuntimeError(NOT_A_CHILD)
        self._bridge.send(data, topic)


class FileEvent:
    """The file to consume."""

    def __init__(self, path, file_id=None):
        self.path = path
        self.file_id = file_id

    def __repr__(self):
        return f"FileEvent(path={self.path!r}, file_id={self.file_id!r})"


class BasePlugin:
    """Base class of plugins written for the SDK."""

    def configure(self, ctx, config):
        self.ctx = ctx
        self.config = config

    def consume(self, event):
        raise NotImplementedError

    def execute(self, file_path):
        raise NotImplementedError


class PluginMetadata:
    """Routing data. The engine reads it as literals; here it is kept as attributes."""

    def __init__(self, **values):
        self.__dict__.update(values)


# Children of the plugin import these classes by this module name (see `work.py`).
for _kind in (Context, FileEvent, BasePlugin, PluginMetadata):
    _kind.__module__ = SHIM_MODULE


def provide_sdk():
    """Provides casparian_flow.sdk as a module where it is not installed."""
    try:
        import casparian_flow.sdk  # noqa: F401
        return
    except ImportError:
        pass
    package = types.ModuleType("casparian_flow")
    package.__path__ = []
    sdk = types.ModuleType("casparian_flow.sdk")
    for value in (BasePlugin, PluginMetadata, FileEvent):
        setattr(sdk, value.__name__, value)
    package.sdk = sdk
    sys.modules["casparian_flow"] = package
    sys.modules["casparian_flow.sdk"] = sdk


def read_source(path):
    """Returns the source's bytes. All processes of the plugin share a descriptor's open file and may have
    changed its position, so it is read with pread."""
    folder, name = os.path.split(path)
    if folder != "/proc/self/fd":
        with open(path, "rb") as file:
            return file.read()
    return os.pread(int(name), os.fstat(int(name)).st_size, 0)


def plugin_source():
    """Returns the bytes of the plugin's source."""
    path = os.environ.get("CASPARIAN_PLUGIN_FILE")
    if path:
        return read_source(path)
    return base64.b64decode(os.environ["BRIDGE_PLUGIN_CODE"])


def run_source(source, filename, space):
    """Runs the plugin's source in the namespace of a module."""
    import linecache

    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    space["__file__"] = filename
    exec(compile(source, filename, "exec"), space)


def load_file(source, filename):
    """Runs the source of a single file."""
    source = io.TextIOWrapper(io.BytesIO(source), encoding="utf-8-sig").read()
    module = types.ModuleType(PLUGIN_MODULE)
    sys.modules[module.__name__] = module
    provide_to_children(source, filename)
    run_source(source, filename, module.__dict__)
    return module


def load_handler(bridge):
    """Runs the plugin's source and returns its Handler class."""
    source, folder = split_source(plugin_source())
    filename = (os.environ.get("CASPARIAN_PLUGIN_NAME") or "plugin") + ".py"
    if folder is None:
        module = load_file(source, filename)
    else:
        module, filename, hidden = load_folder(job_folder(), source, folder)
        for name in hidden:
            bridge.warn(f"module {name!r} of the plugin's folder has the name of one that Python has imported"
                        " already, and is not found by `import`: give it another name")
    handler = getattr(module, "Handler", None)
    if handler is None:
        raise TypeError(f"{filename} defines no class Handler")
    return handler


def job_folder():
    """Returns the job's own folder, which is removed after the job."""
    if "CASPARIAN_PLUGIN_FILE" in os.environ:
        return os.getcwd()
    # A worker of the reference system has no such folder. `run_job` removes this one.
    import tempfile

    OWN_FOLDERS.append(tempfile.mkdtemp(prefix="casparian-"))
    return OWN_FOLDERS[0]


def parameters():
    """Returns the plugin's parameters. The variable is removed, so child processes do not inherit it."""
    return json.loads(os.environ.pop("CASPARIAN_PARAMETERS", None) or "{}")


class InputError(Exception):
    """The input is missing or cannot be read."""


class EnvironmentFailure(Exception):
    """The environment lacks what the shim itself needs."""


def import_pyarrow():
    """Imports pyarrow, one thread at a time: a module that another thread is importing is incomplete."""
    try:
        with IMPORTS:
            import pyarrow
            import pyarrow.ipc

            if "pandas" in sys.modules:
                import pandas  # noqa: F401
        return pyarrow
    except ImportError as error:
        raise EnvironmentFailure(headline(error)) from error


def lacks_pyarrow(error):
    """True if a plugin's import failed because pyarrow cannot be imported at all."""
    if not issubclass(type(error), ImportError):
        return False
    try:
        if (text_of(error.name) + ".").startswith("pyarrow."):
            import_pyarrow()
    except EnvironmentFailure:
        return True
    except BaseException:  # reading the exception's attributes failed
        pass
    return False


def signed(number):
    """The i64 with the same 64 bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def check_input(path):
    """Refuses an input that no plugin could read, before the plugin runs. Opening a FIFO or a device could
    block forever, so these are detected by their file type. Returns the state of a regular file."""
    try:
        found = os.stat(path)
        kind = found.st_mode
        if stat.S_ISDIR(kind):
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        elif stat.S_ISREG(kind):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            return found
        else:
            names = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
            name = next((name for is_kind, name in names if is_kind(kind)), "a device")
            raise InputError(f"{path}: it is {name}, not a file")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: {reason}") from None
    return None


def run_plugin(bridge):
    version = os.environ.get("BRIDGE_FILE_VERSION_ID", "0")
    context = Context(bridge, os.environ.get("BRIDGE_JOB_ID", "0"), version)
    path = os.environ["BRIDGE_FILE_PATH"]
    found = check_input(path)
    if found is not None and "CASPARIAN_PLUGIN_FILE" in os.environ:
        bridge.report_input(found)
    config = parameters()
    handler = load_handler(bridge)()
    if hasattr(handler, "configure"):
        handler.configure(context, config)
    elif config:
        raise TypeError(
            f"class Handler has no configure(ctx, config), which takes the parameters {', '.join(sorted(config))}:"
            " define it, or give none (--param, cf_plugin_config.default_parameters)")
    if not hasattr(handler, "consume") and not hasattr(handler, "execute"):
        raise TypeError("class Handler has neither consume(event) nor execute(file_path)")
    file_id = int(version) if version.lstrip("-").isdigit() else version
    if hasattr(handler, "consume"):
        try:
            result = handler.consume(FileEvent(path, file_id))
        except NotImplementedError:
            if not hasattr(handler, "execute"):
                raise
            result = handler.execute(path)
    else:
        result = handler.execute(path)
    bridge.send(awaited(result))


def text_of(value, convert=str, limit=LINE_MAX):
    """A value as text, cut to a limit. Does not fail, whatever the value's own methods do."""
    try:
        text = convert(value)
        if len(text) > limit:
            text = f"{text[:limit]}… ({len(text)} characters)"
        return text
    except BaseException as error:
        return f"(its text cannot be had: {type_name(error)})"


def type_name(value, part="__name__"):
    """The name of a value's class, read without the class's metaclass."""
    return type.__dict__[part].__get__(type(value))


def headline(error, limit=LINE_MAX):
    """`Type: message`. A message of several lines keeps its further lines."""
    module = text_of(module_of(type(error)))
    name = text_of(type_name(error, "__qualname__"))
    if module not in ("", "builtins", "__main__", PLUGIN_MODULE, SHIM_MODULE, ROOT["module"]):
        name = f"{module}.{name}"
    if issubclass(type(error), SystemExit):
        message = f"the plugin called sys.exit({text_of(error.code, repr)})"
    else:
        message = text_of(error, str, limit).strip() or "no message"
    return " ".join(name.split()) + ": " + message


def details(error, depth=0):
    """The notes of an exception, and the exceptions of an exception group."""
    lines = []
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, (list, tuple)):
        lines += [text_of(note) for note in notes[:PARTS_MAX]]
    inner = getattr(error, "exceptions", None)
    if depth < PARTS_MAX and isinstance(inner, (list, tuple)):
        for part in inner[:PARTS_MAX]:
            if isinstance(part, BaseException):
                lines.append("  " * depth + "- " + headline(part))
                lines += details(part, depth + 1)
                if len(lines) > PARTS_MAX * PARTS_MAX:
                    break
    return lines


def causes(error):
    """The causes of an exception, nearest first."""
    found = [error]
    while len(found) <= PARTS_MAX:
        last = found[-1]
        cause = last.__cause__
        if cause is None and not last.__suppress_context__:
            cause = last.__context__
        if cause is None or any(cause is known for known in found):
            break
        found.append(cause)
    return found[1:]


def causes_of(error):
    return ["caused by " + headline(cause) for cause in causes(error)]


def source_of(error):
    """The source line that Python shows for a syntax error."""
    if not issubclass(type(error), SyntaxError) or not isinstance(error.text, str):
        return []
    return [f"    {text_of(error.text.strip())}"]


def frames_of(error):
    """The lines of the traceback, without this file's own frames."""
    frames = traceback.extract_tb(error.__traceback__, limit=-FRAMES_MAX)
    theirs = [frame for frame in frames if os.path.abspath(frame.filename) != OURS]
    lines = "".join(traceback.format_list(theirs)).rstrip().splitlines()
    return [without_index(line) for line in lines]


def describe(error):
    """An exception as text: type and message, details, causes, then the traceback. Never fails."""
    # Not isinstance, because the exception could override its __class__.
    kind = type(error)
    if issubclass(kind, InputError):
        return f"input: {error}"
    if issubclass(kind, EnvironmentFailure):
        return f"environment: {error}"
    lines = []
    try:
        if issubclass(kind, MemoryError):
            # Its frames reference the objects that filled the memory.
            error.__traceback__ = None
        mark = "environment: " if lacks_pyarrow(error) else ""
        lines.append(mark + headline(error, MESSAGE_MAX))
    except BaseException:
        lines.append(type_name(error) + ": no message")
    for more in (details, causes_of, source_of, frames_of):
        try:
            lines += more(error)
        except BaseException:  # out of memory, or reading the exception failed
            pass
    return "\n".join(lines)


def report(bridge, error):
    """Sends a failure over the bridge, then prints it. A plugin may have closed or replaced stderr."""
    text = describe(error)
    try:
        bridge.fail(text)
    except OSError:
        pass
    try:
        print(text, file=sys.stderr, flush=True)
    except BaseException:
        pass


def end_child(bridge, error):
    """Ends a forked child of the plugin that has returned from the plugin's code. It ends as a Python process
    does. Only the plugin process itself reports the job's end."""
    if getpid() == bridge.owner:
        return
    code = 0 if error is None else 1
    try:
        if error is not None:
            if issubclass(type(error), SystemExit):
                given = error.code
                code = 0 if given is None else given if isinstance(given, int) else 1
            else:
                print(describe(error), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        pass
    finally:
        _exit(code & 0xFF)


def rss_max_kib():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_job():
    """Runs the job that the variables describe, and returns the exit code."""
    try:
        sys.stdout.reconfigure(line_buffering=True)
    except (AttributeError, ValueError):
        pass
    limit_resources()
    provide_sdk()
    bridge = Bridge(os.environ["BRIDGE_SOCKET"])
    work = Work(bridge)
    try:
        run_plugin(bridge)
        end_child(bridge, None)
        work.finish()
        if bridge.refused[0]:
            raise RuntimeError(NOT_A_CHILD)
        end_helpers(work.helpers)
        bridge.end()
        summary, code = {"rows_published": bridge.rows, "status": "SUCCESS"}, 0
    except BaseException as error:  # the plugin may raise any exception, also SystemExit
        end_child(bridge, error)
        if bridge.broken:
            return 1
        report(bridge, error)
        end_helpers(work.helpers)
        summary, code = {"status": "FAILED", "error": printable(text_of(error))}, 1
    for folder in OWN_FOLDERS:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    try:
        # Workers of the reference system accept only the other fields.
        if "CASPARIAN_PLUGIN_FILE" in os.environ:
            summary["rss_max_kib"] = rss_max_kib()
        sys.stderr.flush()
        print(json.dumps(summary), flush=True)
    except BaseException:  # closed or replaced by the plugin; the end was sent over the bridge
        pass
    return code


def limit_open_files(count):
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def limit_resources():
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = os.environ.get("CASPARIAN_MEMORY_MAX")
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))


PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
# Placeholder in a filter for the ID of the process that installs the filter.
OWN_PID = 0x7FFFCA5B
SYS_LANDLOCK_RESTRICT_SELF = 446
SYS_MOUNT_SETATTR = 442
SHARED_MEMORY = "/dev/shm"
# Options of a file system of pseudo-terminals; the same in launch.rs.
TERMINALS = "newinstance,ptmxmode=0666,mode=0620,max=64"
CLONE_NEWNS, CLONE_NEWIPC = 0x20000, 0x8000000
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 32, 4096, 16384
MS_NOEXEC, MS_NOATIME, MS_NODIRATIME, MS_RELATIME, ST_RELATIME = 8, 1024, 2048, 1 << 21, 4096
CAPABILITY_VERSION = 0x20080522
# Numbers of the capabilities that plugins of root keep: those over files of other users, user IDs and
# sockets, not those over the machine, its devices, mounts and other processes.
CAP_KILL = 5
ROOT_KEEPS = (0, 1, 3, 4, 6, 7, 8, 10, 13, 18, 23, 24, 31)


def prctl(option, value):
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def die_with_parent(parent):
    """The kernel kills this process when its parent dies."""
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        _exit(1)


def has_own_memory(request):
    """True if the job can have a /dev/shm of its own: no path that it uses is in that folder."""
    env, hide = request["env"], request["sandbox"].get("hide")
    used = [path_bytes(env[name]) for name in ("BRIDGE_FILE_PATH", "TMPDIR") if name in env]
    used += [path_bytes(hide or ""), os.fsencode(sys.prefix), os.fsencode(sys.base_prefix)]
    real = [os.path.realpath(path) for path in used if path]
    memory = path_bytes(SHARED_MEMORY)
    return os.path.isdir(memory) and not any(path == memory or path.startswith(memory + b"/") for path in real)


def terminals():
    """Mount points of file systems of pseudo-terminals that no other mount covers. All users of the machine have
    kernel.pty.max of these together. /dev/ptmx uses what is mounted at `pts` beside it."""
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = [line.split(b" ") for line in file if b" - devpts " in line]
    found = []
    for _, _, device, root, point, *_ in mounts:
        # Some characters, such as blanks, are octal escapes.
        path = point.decode("unicode_escape").encode("latin-1")
        try:
            visible = os.stat(path).st_dev
        except OSError:
            continue
        major, minor = map(int, device.split(b":"))
        if root == b"/" and visible == os.makedev(major, minor):
            found.append(path)
    return found


def contain(sandbox, ruleset, seccomp, own_memory):
    """Restricts this process and its future children. Keys of `sandbox`, each None without a mount namespace:
    "hide", a folder in which only the paths of "keep" are visible from here on; "cover", a socket that cannot
    be connected to from here on; "writable", the only path below which the file system can be changed.
    "kills" is true if the process can signal only its descendants. `ruleset`: descriptor of a Landlock
    ruleset, or None. `seccomp`: descriptor of a file with a seccomp filter, or None. `own_memory`: whether a
    process with "hide" gets a /dev/shm of its own. It also gets pseudo-terminals of its own."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    hide = path_bytes(sandbox.get("hide") or "")

    def done(result, what):
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"sandbox: {what}: {os.strerror(number)}")

    def mount(source, target, kind, flags, data=None):
        words = [word and os.fsencode(word) for word in (source, target, kind, data)]
        done(libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {os.fsdecode(target)}")

    if hide:
        # With the IPC namespace, System V shared memory, queues and semaphores are removed when the job ends.
        done(libc.unshare(CLONE_NEWNS | CLONE_NEWIPC), "unshare")
        kept = [(path, os.open(path, os.O_PATH)) for path in map(path_bytes, sandbox["keep"])]
        mount("none", hide, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0711,size=64k")
        for path, fd in kept:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.mkdir(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)
            os.close(fd)
        mount(None, hide, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        if own_memory:
            # The same for POSIX shared memory and semaphores.
            mount("none", SHARED_MEMORY, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
        for folder in terminals():
            try:
                mount("none", folder, "devpts", MS_NOSUID | MS_NOEXEC, TERMINALS)
            except OSError:
                # Where it is not permitted, the job has those of its fork server or of the host.
                pass
        cover = path_bytes(sandbox.get("cover") or "")
        if cover:
            try:
                mount("/dev/null", cover, None, MS_BIND)
                # Read-only, because a change of its mode or owner would change the machine's device.
                found = os.statvfs("/dev/null").f_flag
                kept = found & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
                kept |= MS_RELATIME if found & ST_RELATIME else 0
                mount(None, cover, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)
            except FileNotFoundError:
                # The socket does not exist, because the program that listens there is being restarted.
                pass
        writable = path_bytes(sandbox.get("writable") or "")
        if writable:
            read_only_but(writable, libc, done)
    keeps = ROOT_KEEPS if os.geteuid() == 0 else ()
    if sandbox.get("kills") and keeps:
        keeps += (CAP_KILL,)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    # The effective, permitted and inheritable sets, first of capabilities 0 to 31, then of the others.
    sets = (ctypes.c_uint32 * 6)()
    done(libc.capget(header, sets), "capget")
    for index in range(6):
        first = index // 3 * 32
        sets[index] &= sum(1 << number - first for number in keeps if first <= number < first + 32)
    done(libc.capset(header, sets), "capset")
    done(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if ruleset is not None:
        done(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock")
    if seccomp is not None:
        steps = list(struct.iter_unpack("=HBBI", os.pread(seccomp, 1 << 20, 0)))
        code = ctypes.create_string_buffer(b"".join(
            struct.pack("=HBBI", *step, getpid() if value == OWN_PID else value)
            for *step, value in steps))
        # Each instruction has 8 bytes. The buffer has a NUL after them.
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(code))
        done(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def path_bytes(text):
    """Returns the bytes of a path or a value in a request."""
    return text.encode("latin-1")


def printable(text):
    """A text that can be encoded as UTF-8: surrogates in it are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_only_but(writable, libc, done):
    """Makes all mounts read-only except one. That is needed because Landlock does not refuse changes of
    modes, owners, times and attributes."""
    for path, flags, to_set, to_clear in (
            (b"/", AT_RECURSIVE, MOUNT_ATTR_RDONLY, 0),
            (writable, 0, 0, MOUNT_ATTR_RDONLY)):
        attributes = struct.pack("@QQQQ", to_set, to_clear, 0, 0)
        done(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, attributes, len(attributes)),
             "mount_setattr")
    # Open descriptors refer to the earlier mounts. Those of /dev/null are opened again.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd != null and os.readlink(f"/proc/self/fd/{fd}") == os.devnull:
                os.dup2(null, fd, os.get_inheritable(fd))
        except FileNotFoundError:  # the descriptor that listdir itself used
            pass
    os.close(null)


def own_children():
    """Process IDs of this process's children, including adopted ones and zombies."""
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found += map(int, file.read().split())
        except FileNotFoundError:
            # A thread that has ended, or a kernel that lacks these files.
            if task == str(getpid()):
                return children_by_parent(b"%d" % getpid())
    return found


def children_by_parent(parent):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            # A process name may contain any bytes.
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[1] == parent:
                    found.append(int(pid))
        except OSError:
            pass
    return found


def contain_child(request, fds):
    """Restricts a plugin process. If that fails, the process does not run its plugin."""
    sandbox = request["sandbox"]
    left = list(fds)
    ruleset = left.pop(0) if sandbox.get("ruleset") else None
    seccomp = left.pop(0) if sandbox.get("seccomp") else None
    try:
        contain(sandbox, ruleset, seccomp, has_own_memory(request))
    except Exception as error:
        report(Bridge(path_bytes(request["env"]["BRIDGE_SOCKET"])), EnvironmentFailure(str(error)))
        _exit(1)
    for fd in fds:
        os.close(fd)


class ForkServer:
    """Forks a child for each job."""

    def __init__(self, fd):
        import select
        import signal

        self.select = select
        self.signal = signal
        # The worker passes the socket as descriptor `fd`, usually stdin. It is replaced there, so that
        # children do not have it.
        self.control = socket.socket(fileno=os.dup(fd))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, fd)
        os.close(null)
        self.children = {}
        # Children that modules have started while they were imported.
        self.kept = set()
        self.has_strays = False
        # Number of other Python threads. A fork does not copy them, so a child could wait for them forever.
        self.threads = 0
        self.is_reported = False
        self.modules = []
        self.wake_in, self.wake_out = os.pipe()
        os.set_blocking(self.wake_in, False)
        os.set_blocking(self.wake_out, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.watch_children()

    def send(self, **answer):
        self.control.send(json.dumps(answer).encode())

    def watch_children(self):
        self.signal.signal(self.signal.SIGCHLD, lambda *_: None)
        self.signal.set_wakeup_fd(self.wake_out, warn_on_full_buffer=False)

    def serve(self):
        # Again, because a module may have replaced the handler.
        self.watch_children()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.kept = set(own_children())
        # From here on the end of the socket reports the worker's end. A stopped fork server is then resumed.
        prctl(PR_SET_PDEATHSIG, self.signal.SIGCONT)
        self.send(ready=True, python=sys.version.split()[0])
        poll = self.select.poll()
        poll.register(self.control, self.select.POLLIN)
        poll.register(self.wake_in, self.select.POLLIN)
        while True:
            ready = poll.poll(100 if self.has_strays else None)
            if self.has_strays:
                self.kill_strays(0)
            for fd, _events in ready:
                if fd == self.wake_in:
                    try:
                        os.read(self.wake_in, 4096)
                    except BlockingIOError:
                        pass
                    self.reap()
                elif not self.request():
                    self.kill_all()
                    return

    def request(self):
        """Processes one request. Returns False when the worker has closed the socket."""
        try:
            message, fds, _flags, _address = socket.recv_fds(self.control, 1 << 20, 5)
        except OSError:
            return False
        if not message:
            return False
        job = None
        try:
            request = json.loads(message)
            if "ping" in request:
                self.send(pong=request["ping"])
                return True
            job = request["job"]
            sandbox = request.get("sandbox", {})
            expected = 3 + bool(sandbox.get("ruleset")) + bool(sandbox.get("seccomp"))
            if len(fds) != expected:
                import resource

                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                raise ValueError(
                    f"{len(fds)} of {expected} descriptors arrived: it has too many open files"
                    f" (limit {limit}); raise it with `ulimit -n`")
            self.check_threads()
            parent = getpid()
            pid = os.fork()
            if pid == 0:
                self.child(request, fds, parent)
            self.children[pid] = job
            self.send(started=job, pid=pid)
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.send(failed=job, message=printable(f"{type(error).__name__}: {error}"))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def child(self, request, fds, parent):
        code = 1
        try:
            os.setsid()
            die_with_parent(parent)
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            self.signal.set_wakeup_fd(-1)
            self.signal.signal(self.signal.SIGCHLD, self.signal.SIG_DFL)
            self.signal.signal(self.signal.SIGINT, self.signal.SIG_DFL)
            self.control.close()
            os.close(self.wake_in)
            os.close(self.wake_out)
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
            for fd in fds[:2]:
                os.close(fd)
            if "sandbox" in request:
                contain_child(request, fds[3:])
            if "open_files" in request:
                limit_open_files(request["open_files"])
            # Variables that a preload has set are kept: in a new interpreter the plugin's own import sets
            # them.
            os.environ.pop("CASPARIAN_PARENT", None)
            for name, value in request["env"].items():
                os.environb[name.encode()] = path_bytes(value)
            os.chdir(path_bytes(request["cwd"]))
            interpreter = path_bytes(request["interpreter"]) if "interpreter" in request else sys.executable
            if "shim" in request:
                os.execv(interpreter, [interpreter, path_bytes(request["shim"])])
            os.environ["CASPARIAN_PLUGIN_FILE"] = f"/proc/self/fd/{fds[2]}"
            if self.threads or "interpreter" in request:
                os.set_inheritable(fds[2], True)
                os.execv(interpreter, [interpreter, OURS])
            numpy = sys.modules.get("numpy")
            if numpy is not None:
                numpy.random.seed()
            forget_parent()
            code = run_job()
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                _exit(code)

    def reap(self):
        """Reports children that have exited, after their descendants were killed."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            if pid not in self.children:
                self.kept.discard(pid)
                os.waitpid(pid, 0)
                continue
            self.kill_group(pid)
            _pid, status, usage = os.wait4(pid, 0)
            job = self.children.pop(pid)
            self.kill_strays(STRAYS_WAIT)
            answer = {"exited": job, "rss_max_kib": usage.ru_maxrss}
            if os.WIFSIGNALED(status):
                answer["signal"] = os.WTERMSIG(status)
            else:
                answer["code"] = os.WEXITSTATUS(status)
            self.send(**answer)

    def check_threads(self):
        """Counts other threads. While there are some, children execute a new interpreter; that is logged
        once."""
        known, self.threads = self.threads, len(sys._current_frames()) - 1
        if self.threads > 0 and known == 0 and not self.is_reported:
            self.is_reported = True
            print(f"the preload of {', '.join(self.modules) or 'this environment'} leaves"
                  f" {self.threads} thread(s) running, which a fork does not copy: each job starts an"
                  " interpreter of its own. Start threads in the plugin, or leave the module out of"
                  " `preload`", file=sys.stderr, flush=True)

    def kill_group(self, pid):
        try:
            os.killpg(pid, self.signal.SIGKILL)
        except OSError:
            pass

    def kill_strays(self, wait):
        """Kills the orphans of ended children, and their children in turn. Takes at most `wait` seconds, and
        records whether some are left."""
        until = time.monotonic() + wait
        while True:
            known = self.kept | self.children.keys()
            strays = [pid for pid in own_children() if pid not in known]
            self.has_strays = bool(strays)
            for pid in strays:
                try:
                    os.kill(pid, self.signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
                except OSError:
                    pass
            if not strays or time.monotonic() >= until:
                return
            time.sleep(0.001)

    def kill_all(self):
        for pid in self.children:
            self.kill_group(pid)
        self.children.clear()
        self.kept.clear()
        self.kill_strays(STRAYS_WAIT)


def bare(fd):
    import concurrent.futures  # noqa: F401  loaded before the fork, used after it
    import ctypes  # noqa: F401
    import linecache  # noqa: F401
    import resource  # noqa: F401

    ForkServer(fd).serve()


def warm(arguments):
    import concurrent.futures  # noqa: F401  loaded before the fork, used after it
    import ctypes  # noqa: F401
    import gc
    import importlib
    import linecache  # noqa: F401
    import resource  # noqa: F401

    server = ForkServer(int(arguments[0]))
    server.modules = arguments[1:]
    for name in ["pyarrow.ipc", "pyarrow.csv", *arguments[1:]]:
        try:
            importlib.import_module(name)
        except BaseException as error:  # the plugin's own import will raise it again
            print(f"preload of {name}: {headline(error)}", file=sys.stderr)
    gc.collect()
    gc.freeze()
    server.serve()


def main():
    if len(sys.argv) > 2:
        die_with_parent(int(os.environ.get("CASPARIAN_PARENT", os.getppid())))
        if sys.argv[1] == "--warm":
            warm(sys.argv[2:])
        else:
            bare(int(sys.argv[2]))
        return 0
    code = run_job()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # closed or replaced by the plugin; the end was sent over the bridge
        pass
    finally:
        _exit(code)


if __name__ == "__main__":
    sys.exit(main())
