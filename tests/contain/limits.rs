//! Limits of a job: the one that is passed ends it, and is named.

use crate::common::*;

/// Uses more than it may of what its input names.
const GREEDY: &str = r#"
import os, sys, time
import pyarrow as pa

def burn():
    while True:
        pass

def daemon(work):
    # A session and a parent of its own.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            work()
        os._exit(0)

def hold(size):
    held = bytearray(size)
    for at in range(0, size, 4096):
        held[at] = 1
    time.sleep(600)

def cpu(): burn()
def cpu_of_a_daemon():
    daemon(burn)
    time.sleep(600)
def memory(): hold(200 << 20)
def memory_of_daemons():
    for _ in range(4):
        daemon(lambda: hold(50 << 20))
    time.sleep(600)
def page_tables():
    # Each read of the zero page takes a page of a page table.
    import mmap
    held = mmap.mmap(-1, 200 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ)
    for at in range(0, len(held), 2 << 20):
        held[at]
    time.sleep(600)
def shared_memory():
    # The pages of one process, seen by ten others.
    held = bytearray(50 << 20)
    for at in range(0, len(held), 4096):
        held[at] = 1
    children = []
    for _ in range(10):
        child = os.fork()
        if child == 0:
            time.sleep(2)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
def processes():
    for _ in range(40):
        daemon(lambda: time.sleep(600))
    time.sleep(600)
def without_reaper(work):
    # Its orphans would not be below it any more.
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(36, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1
    # Not a value that only looks like zero to a filter.
    assert libc.prctl(36, ctypes.c_ulong(1 << 32), 0, 0, 0) == 0
    for number in range(30):
        daemon(work)
    time.sleep(600)
def processes_without_reaper():
    without_reaper(lambda: time.sleep(600))
def log():
    while True:
        print("x" * 100)
def scratch():
    for number in range(40):
        os.mkdir(f"d{number}")
        with open(f"d{number}/file", "wb") as file:
            file.write(bytes(1 << 20))
    time.sleep(600)
def open_files():
    held = [open("/dev/null") for _ in range(100)]

class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        name = open(path).read()
        if name.endswith("@"):
            name = name[:-1]
            with open("/proc/self/comm", "wb") as file:
                file.write(b"\xff) R 1 1")
        if name == "output":
            topics = [self.ctx.register_topic(topic) for topic in ("a", "b")]
            while True:
                for topic in topics:
                    self.ctx.publish(topic, pa.table({"x": [os.urandom(1 << 20) for _ in range(8)]}))
        if name == "modest":
            print("hello")
        else:
            globals()[name]()
        yield pa.table({"x": [1]})
"#;

const OPTIONS: &[&str] = &[
    "--job-cpu",
    "2",
    "--job-memory",
    "150M",
    "--job-processes",
    "20",
    "--job-log",
    "10M",
    "--job-scratch",
    "20M",
    "--job-open-files",
    "50",
    "--job-output",
    "50M",
];

#[test]
fn the_limit_that_is_passed_ends_the_job_and_is_named() {
    let cases = [
        ("cpu", "its limit is 2 s (--job-cpu)"),
        ("cpu_of_a_daemon", "its limit is 2 s (--job-cpu)"),
        ("memory", "its limit is 150000000 (--job-memory)"),
        ("memory_of_daemons", "its limit is 150000000 (--job-memory)"),
        ("page_tables", "its limit is 150000000 (--job-memory)"),
        ("memory@", "its limit is 150000000 (--job-memory)"),
        (
            "memory_of_daemons@",
            "its limit is 150000000 (--job-memory)",
        ),
        ("cpu@", "2 s (--job-cpu)"),
        ("processes", "its limit is 20 (--job-processes)"),
        (
            "processes_without_reaper",
            "its limit is 20 (--job-processes)",
        ),
        ("log", "its limit is 10000000 (--job-log)"),
        ("scratch", "its limit is 20000000 (--job-scratch)"),
        ("open_files", "may open 50 files each: --job-open-files"),
        ("output", "the limit is 50000000 (--job-output)"),
        ("shared_memory", ""),
        ("modest", ""),
    ];
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "greedy", GREEDY);
        let files: Vec<_> = (cases.iter().enumerate())
            .map(|(number, (case, _))| {
                // They are queued in the order of their names.
                let file = dir.path().join(format!("in-{number:02}"));
                std::fs::write(&file, case).unwrap();
                file
            })
            .collect();
        let ids = submit(&database, "greedy", &files);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let more = [
            "--slots",
            "3",
            "--plugin-start",
            start,
            "--job-timeout",
            "100",
        ];
        let more: Vec<&str> = more.iter().chain(OPTIONS).copied().collect();
        let mut worker = worker(&endpoint, &dir.path().join("out"), &more);
        for (id, (case, words)) in ids.into_iter().zip(cases) {
            let done = ended(&database, id);
            let reason = done["error"].as_str().unwrap_or("");
            let status = if words.is_empty() {
                "COMPLETED"
            } else {
                "FAILED"
            };
            assert_eq!(done["status"], status, "{start} {case}: {reason}");
            assert!(reason.contains(words), "{start} {case}: {reason}");
            assert_eq!(done["attempt"], 1, "{start} {case}: it is not tried again");
        }
        worker.signal("-TERM");
        assert_eq!(worker.wait(), Some(0));
    }
}

#[test]
fn a_plugin_lowers_limits_and_raises_none() {
    let cases = [
        (
            "cpu",
            "job-cpu = 1",
            "--job-cpu 3",
            "its limit is 1 s (job-cpu of the plugin's",
        ),
        (
            "cpu",
            "job-cpu = 100",
            "--job-cpu 2",
            "its limit is 2 s (--job-cpu)",
        ),
        (
            "log",
            "job-log = \"1M\"",
            "--job-log 0",
            "its limit is 1000000 (job-log of the plugin's",
        ),
        (
            "cpu",
            "job-timeout = 1",
            "--job-timeout 90",
            "longer than its limit of 1 s (job-timeout of the plugin's",
        ),
        (
            "cpu",
            "job-timeout = 90",
            "--job-timeout 2",
            "longer than its limit of 2 s (--job-timeout)",
        ),
        (
            "output",
            "job-output = \"3M\"",
            "--job-output 0",
            "the limit is 3000000 (job-output of the plugin's",
        ),
    ];
    for (case, word, option, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let head = format!(
            "# /// script\n# dependencies = [\"pyarrow\"]\n# [tool.casparian]\n# {word}\n# ///\n"
        );
        let plugin = dir.path().join("greedy.py");
        std::fs::write(&plugin, head + GREEDY).unwrap();
        let file = dir.path().join("in");
        std::fs::write(&file, case).unwrap();
        let out = dir.path().join("out");
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let (long, value) = option.split_once(' ').unwrap();
        let output = casparian(&[
            "run",
            &text(&plugin),
            &text(&file),
            "-o",
            &text(&out),
            long,
            value,
        ]);
        assert_eq!(output.status.code(), Some(1), "{word}: {}", stderr(&output));
        let shown = stdout(&output) + &stderr(&output);
        assert!(shown.contains(want), "{word} {option}: {shown}");
    }
}
