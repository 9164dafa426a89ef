//! Plugin processes that do what they must not: the job fails with a reason, and the slot is free again.

use serde_json::Value;

use crate::common::*;

/// Name, source, job status, words of the error.
const PLUGIN_PROCESSES: &[(&str, &str, &str, &str)] = &[
    (
        "raises",
        "class Handler:\n    def execute(self, path):\n        raise ValueError('bad row 17')\n",
        "FAILED",
        "ValueError: bad row 17",
    ),
    (
        "exits",
        "import os\nclass Handler:\n    def execute(self, path):\n        os._exit(3)\n",
        "FAILED",
        "exit code 3",
    ),
    (
        "sys_exit",
        "import sys\nclass Handler:\n    def execute(self, path):\n        sys.exit(0)\n",
        "FAILED",
        "sys.exit(0)",
    ),
    (
        "kills_itself",
        "import os, signal\nclass Handler:\n    def execute(self, path):\n        os.kill(os.getpid(), signal.SIGKILL)\n",
        "FAILED",
        "SIGKILL",
    ),
    (
        "crashes",
        "import ctypes\nclass Handler:\n    def execute(self, path):\n        ctypes.string_at(0)\n",
        "FAILED",
        "SIGSEGV",
    ),
    ("no_handler", "x = 1\n", "FAILED", "no class Handler"),
    (
        "bad_import",
        "import casparian_no_such_module\nclass Handler: pass\n",
        "FAILED",
        "ModuleNotFoundError",
    ),
    (
        "wrong_type",
        "class Handler:\n    def execute(self, path):\n        yield 'text'\n",
        "FAILED",
        "must be a pandas DataFrame",
    ),
    (
        "changes_schema",
        "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'id': [1]})\n        yield pa.table({'id': ['now text']})\n",
        "FAILED",
        "schema of topic output changed",
    ),
    (
        "own_job_id",
        "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'_job_id': [1]})\n",
        "FAILED",
        "rename yours",
    ),
    (
        "garbage",
        "import os, socket\nclass Handler:\n    def configure(self, ctx, config):\n        ctx._bridge.socket.sendall(b'\\x00\\x00\\x00\\x08garbage!')\n    def execute(self, path):\n        pass\n",
        "FAILED",
        "no Arrow stream",
    ),
    (
        "huge_frame",
        "class Handler:\n    def configure(self, ctx, config):\n        ctx._bridge.socket.sendall(b'\\xf0\\x00\\x00\\x00')\n    def execute(self, path):\n        pass\n",
        "FAILED",
        "frame of",
    ),
    (
        "closes_bridge",
        "class Handler:\n    def configure(self, ctx, config):\n        ctx._bridge.socket.close()\n    def execute(self, path):\n        import os; os._exit(0)\n",
        "FAILED",
        "without an end of output",
    ),
    (
        "hangs",
        "import time\nclass Handler:\n    def execute(self, path):\n        time.sleep(1000)\n",
        "FAILED",
        "limit of 3 s",
    ),
    (
        "ignores_sigterm",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nclass Handler:\n    def execute(self, path):\n        while True: pass\n",
        "FAILED",
        "limit of 3 s",
    ),
    (
        "no_output",
        "class Handler:\n    def execute(self, path):\n        return None\n",
        "COMPLETED",
        "",
    ),
    (
        "empty_table",
        "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': pa.array([], pa.int64())})\n",
        "COMPLETED",
        "",
    ),
    (
        "prints_much",
        "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        for n in range(200_000): print('line', n)\n        yield pa.table({'x': [1]})\n",
        "COMPLETED",
        "",
    ),
    (
        "leaves_grandchild",
        "import subprocess\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        subprocess.Popen(['sleep', '98765'])\n        yield pa.table({'x': [1]})\n",
        "COMPLETED",
        "",
    ),
    (
        "consume",
        "import pyarrow as pa\nfrom casparian_flow.sdk import BasePlugin, PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='t')\nclass Handler(BasePlugin):\n    def consume(self, event):\n        yield None\n        yield pa.table({'p': [event.path], 'f': [event.file_id]}).to_batches()[0]\n",
        "COMPLETED",
        "",
    ),
    (
        "falls_back",
        "import pyarrow as pa\nfrom casparian_flow.sdk import BasePlugin\nclass Handler(BasePlugin):\n    def execute(self, path):\n        return pa.table({'p': [path]})\n",
        "COMPLETED",
        "",
    ),
    (
        "scrubbed",
        "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        assert 'SECRET_TOKEN' not in os.environ, 'the environment leaks'\n        assert os.getcwd() == os.environ['HOME'] and not os.listdir('.') == None\n        yield pa.table({'x': [1]})\n",
        "COMPLETED",
        "",
    ),
];

fn run_all(start: &str) {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "first", "class Handler: pass\n");
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let text = database.to_str().unwrap();
    let mut ids = Vec::new();
    for (name, source, ..) in PLUGIN_PROCESSES {
        let file = dir.path().join(format!("{name}.py"));
        std::fs::write(&file, source).unwrap();
        casparian_ok(&["deploy", file.to_str().unwrap(), "-d", text]);
        ids.push(submit(&database, name, std::slice::from_ref(&input))[0]);
    }
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut command = program("casparian-worker");
    command.args([
        "--connect",
        &endpoint,
        "--slots",
        "1",
        "--job-timeout",
        "3",
        "--output",
    ]);
    command
        .arg(&out)
        .args(["--plugin-start", start])
        .env("SECRET_TOKEN", "x");
    let _worker = Background::start(&mut command);
    for (id, (name, _, status, words)) in ids.into_iter().zip(PLUGIN_PROCESSES) {
        let job = ended(&database, id);
        assert_eq!(job["status"], *status, "{start} {name}: {job}");
        let error = job["error"].as_str().unwrap_or("");
        assert!(error.contains(words), "{start} {name}: {job}");
        let artifacts = job["receipt"]["artifacts"].as_array().unwrap();
        let expected = usize::from(*status == "COMPLETED" && *name != "no_output");
        assert_eq!(artifacts.len(), expected, "{start} {name}: {job}");
        if *name == "prints_much" {
            assert!(
                job["log"].as_str().unwrap().contains("line 199999"),
                "{job}"
            );
        }
    }
    no_process("98765");
}

fn no_process(argument: &str) {
    until("the grandchild is gone", || {
        let alive = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word == argument.as_bytes())
            })
        });
        (!alive).then_some(())
    });
}

#[test]
fn bad_plugins_fail_with_a_reason_and_free_the_slot_warm() {
    run_all("warm");
}

#[test]
fn bad_plugins_fail_with_a_reason_and_free_the_slot_spawned() {
    run_all("spawn");
}

#[test]
fn an_input_that_cannot_be_read_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [open(path).read()]})\n").unwrap();
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("good"), "x").unwrap();
    // Not UTF-8: the plugin cannot read it. (Permissions do not stop root.)
    std::fs::write(folder.join("bad"), [0xFF, 0xFE, 0xFF]).unwrap();
    let output = casparian(&[
        "run",
        plugin.to_str().unwrap(),
        folder.to_str().unwrap(),
        "--json",
        "--output",
        dir.path().join("out").to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(summary["totals"]["done"], 1);
    assert!(
        summary.to_string().contains("UnicodeDecodeError"),
        "{summary}"
    );
}
