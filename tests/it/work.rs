//! Work of a plugin beside its handler: threads, executors, atexit functions and child processes.
//! It is awaited or fails the job, in both ways to start a plugin.

use crate::common::*;
use crate::returns::Want::{Fails, Rows};
use crate::returns::{Case, HEADER, check, check_both};
use crate::run::run_json;

const AWAITED: &[Case] = &[
    (
        "thread",
        "def late():\n    time.sleep(.3)\n    self.ctx.publish('t', {'a': [1]})\n    threading.Thread(target=later).start()\ndef later():\n    time.sleep(.3)\n    self.ctx.publish('t', {'a': [2]})\nthreading.Thread(target=late).start()",
        Rows(r#"[{"a": 1}, {"a": 2}]"#),
    ),
    (
        "executor",
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\ndef late(n):\n    time.sleep(.1)\n    self.ctx.publish('t', {'a': [n]})\nfor n in range(4): pool.submit(late, n)",
        Rows(r#"[{"a": 0}, {"a": 1}, {"a": 2}, {"a": 3}]"#),
    ),
    (
        "thread_that_submits",
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\ndef late():\n    time.sleep(.2)\n    pool.submit(self.ctx.publish, 't', {'a': [1]})\nthreading.Thread(target=late).start()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "process_executor",
        "from concurrent.futures import ProcessPoolExecutor\npool = ProcessPoolExecutor(1)\npool.submit(square, 3).add_done_callback(lambda done: self.ctx.publish('t', {'a': [done.result()]}))",
        Rows(r#"[{"a": 9}]"#),
    ),
    (
        "atexit",
        "import atexit\natexit.register(lambda: self.ctx.publish('t', {'a': [1]}))",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "task",
        "import asyncio\nasync def late():\n    await asyncio.sleep(.2)\n    self.ctx.publish('t', {'a': [1]})\nasync def handle():\n    self.task = asyncio.ensure_future(late())\nreturn handle()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "loop_in_a_thread",
        "import asyncio\nasync def late():\n    await asyncio.sleep(.2)\n    self.ctx.publish('t', {'a': [1]})\nthreading.Thread(target=asyncio.run, args=(late(),)).start()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "idle_daemons",
        "import queue\nfrom multiprocessing.pool import ThreadPool\nitems = queue.Queue()\ndef consume():\n    while True:\n        self.ctx.publish('t', items.get())\n        items.task_done()\ndef beat():\n    while True: time.sleep(.1)\nfor work in (consume, beat): threading.Thread(target=work, daemon=True).start()\nitems.put({'a': [1]})\nitems.join()\nThreadPool(2).map(lambda n: self.ctx.publish('t', {'a': [n]}), [2, 2])",
        Rows(r#"[{"a": 1}, {"a": 2}, {"a": 2}]"#),
    ),
    (
        "failure_that_was_asked_for",
        "from concurrent.futures import ThreadPoolExecutor\nfuture = ThreadPoolExecutor(1).submit(int, 'x')\nassert isinstance(future.exception(), ValueError)\nreturn {'a': [1]}",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "thread_that_raises",
        "def late():\n    time.sleep(.2)\n    raise KeyError('late')\nthreading.Thread(target=late).start()\nreturn {'a': [1]}",
        Fails("KeyError: 'late'"),
    ),
    (
        "thread_that_has_raised",
        "def work(): raise KeyError('early')\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()\nreturn {'a': [1]}",
        Fails("KeyError: 'early'"),
    ),
    (
        "task_that_raises",
        "from concurrent.futures import ThreadPoolExecutor\ndef late(): raise KeyError('late')\nThreadPoolExecutor(1).submit(late)\nreturn {'a': [1]}",
        Fails("KeyError: 'late'"),
    ),
    (
        "task_of_a_process_that_raises",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor(1).submit(fail)\nreturn {'a': [1]}",
        Fails("KeyError: 'child'"),
    ),
    (
        "process_that_raises",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=fail).start()\nreturn {'a': [1]}",
        Fails("ended with exit code 1"),
    ),
    (
        "atexit_that_raises",
        "import atexit\natexit.register(lambda: 1 / 0)\nreturn {'a': [1]}",
        Fails("ZeroDivisionError"),
    ),
    (
        "async_task_that_raises",
        "import asyncio\nasync def late():\n    await asyncio.sleep(.1)\n    raise KeyError('late')\nasync def handle():\n    self.task = asyncio.ensure_future(late())\nreturn handle()",
        Fails("KeyError: 'late'"),
    ),
    (
        "daemon_that_publishes",
        "def late():\n    for n in range(1000):\n        time.sleep(.1)\n        self.ctx.publish('t', {'a': [n]})\nthreading.Thread(target=late, daemon=True, name='late').start()\nreturn {'a': [1]}",
        Fails("the daemon thread 'late' can publish and still runs"),
    ),
    (
        "daemon_that_ends",
        "def emit(n): self.ctx.publish('t', {'a': [n]})\ndef late():\n    for n in range(3):\n        time.sleep(.3)\n        emit(n)\nthreading.Thread(target=late, daemon=True).start()",
        Rows(r#"[{"a": 0}, {"a": 1}, {"a": 2}]"#),
    ),
    (
        "daemon_with_the_method_of_the_context",
        "send = self.ctx.publish\ndef late():\n    time.sleep(.5)\n    send('t', {'a': [1]})\nthreading.Thread(target=late, daemon=True).start()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "daemon_with_an_object_of_a_class_without_module",
        "space = {'call': lambda own: own.send('t', {'a': [1]})}\nexec(\"Own = type('Own', (), {'__call__': call})\", space)\nown = space['Own']()\nown.send = self.ctx.publish\ndef late():\n    time.sleep(.5)\n    own()\nthreading.Thread(target=late, daemon=True).start()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "timer",
        "timer = threading.Timer(1, self.ctx.publish, ('t', {'a': [1]}))\ntimer.daemon = True\ntimer.start()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "thread_of_the_low_module",
        "import _thread\ndef late():\n    time.sleep(.5)\n    self.ctx.publish('t', {'a': [1]})\n_thread.start_new_thread(late, ())",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "batcher",
        "import queue\nitems = queue.Queue()\ndef batch():\n    rows = []\n    while True:\n        try: rows.append(items.get(timeout=.5))\n        except queue.Empty:\n            if rows: self.ctx.publish('t', {'a': rows})\n            rows = []\nthreading.Thread(target=batch, daemon=True).start()\nfor n in range(3): items.put(n)",
        Rows(r#"[{"a": 0}, {"a": 1}, {"a": 2}]"#),
    ),
    (
        "producer",
        "import queue\nitems = queue.Queue()\ndef produce():\n    for n in range(2):\n        time.sleep(.3)\n        items.put(n)\ndef consume():\n    while True: self.ctx.publish('t', {'a': [items.get()]})\nfor work in (produce, consume): threading.Thread(target=work, daemon=True).start()",
        Rows(r#"[{"a": 0}, {"a": 1}]"#),
    ),
    (
        "thread_pool",
        "from multiprocessing.pool import ThreadPool\ndef emit(n): self.ctx.publish('t', {'a': [n]})\ndef late(n):\n    time.sleep(.2 * n)\n    emit(n)\nself.pool = ThreadPool(1)\nself.pool.map_async(late, range(4))\nself.pool.close()",
        Rows(r#"[{"a": 0}, {"a": 1}, {"a": 2}, {"a": 3}]"#),
    ),
    (
        "process_pool",
        "self.pool = multiprocessing.get_context('fork').Pool(2)\nself.pool.map_async(square, [2, 3], callback=lambda found: self.ctx.publish('t', {'a': found}))",
        Rows(r#"[{"a": 4}, {"a": 9}]"#),
    ),
    (
        "loop_in_a_daemon",
        "import asyncio\nloop = asyncio.new_event_loop()\nthreading.Thread(target=loop.run_forever, daemon=True).start()\nasync def late():\n    await asyncio.sleep(.5)\n    self.ctx.publish('t', {'a': [1]})\nasyncio.run_coroutine_threadsafe(late(), loop)",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "daemon_that_only_counts",
        "self.count = 0\ndef beat(ctx):\n    while True:\n        time.sleep(.1)\n        self.count += 1\nthreading.Thread(target=beat, args=(self.ctx,), daemon=True).start()\nreturn {'a': [1]}",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "batch_that_is_never_full",
        "import queue\nitems = queue.Queue()\ndef batch():\n    rows = []\n    while True:\n        rows.append(items.get())\n        if len(rows) == 2:\n            self.ctx.publish('t', {'a': rows})\n            rows = []\nthreading.Thread(target=batch, daemon=True, name='batcher').start()\nfor n in range(3): items.put(n)",
        Fails("the daemon thread 'batcher' waits with values in 'rows'"),
    ),
    (
        "daemon_that_raises",
        "def emit(n): self.ctx.publish('t', {'a': [1 // n]})\ndef late():\n    time.sleep(.3)\n    emit(0)\nthreading.Thread(target=late, daemon=True).start()\nreturn {'a': [1]}",
        Fails("ZeroDivisionError"),
    ),
    (
        "task_of_a_pool_that_raises",
        "from multiprocessing.pool import ThreadPool\ndef late(n):\n    time.sleep(1)\n    raise KeyError('pool')\nself.pool = ThreadPool(1)\nself.pool.map_async(late, [1])",
        Fails("KeyError: 'pool'"),
    ),
    (
        "items_of_a_pool_that_raise",
        "from multiprocessing.pool import ThreadPool\ndef late(n):\n    time.sleep(.3)\n    self.ctx.publish('t', {'a': [10 // n]})\nself.pool = ThreadPool(2)\nself.pool.imap_unordered(late, [1, 0, 2])\nself.pool.close()",
        Fails("ZeroDivisionError"),
    ),
    (
        "items_of_a_pool_that_have_raised",
        "from multiprocessing.pool import ThreadPool\npool = ThreadPool(2)\npool.imap(lambda n: 1 // n, [1, 0])\npool.close()\npool.join()\nreturn {'a': [1]}",
        Fails("ZeroDivisionError"),
    ),
    (
        "tasks_of_pools_that_have_raised",
        "from multiprocessing.pool import ThreadPool\npool = ThreadPool(2)\npool.apply_async(lambda: 1 // 0)\npool.close()\npool.join()\nreturn {'a': [1]}",
        Fails("ZeroDivisionError"),
    ),
    (
        "tasks_of_process_pools_that_have_raised",
        "pool = multiprocessing.get_context('fork').Pool(2)\npool.starmap_async(fail, [(), ()])\npool.close()\npool.join()\nreturn {'a': [1]}",
        Fails("KeyError: 'child'"),
    ),
    (
        "failures_of_pools_that_were_asked_for",
        "from multiprocessing.pool import ThreadPool\npool = ThreadPool(2)\nfound = []\ntask = pool.map_async(lambda n: 1 // n, [0, 1, 0])\ntry: task.get()\nexcept ZeroDivisionError: found.append(1)\ntask = pool.apply_async(lambda: 1 // 0)\ntask.wait()\nfound.append(2 + task.successful())\nitems = pool.imap(lambda n: 1 // n, [0, 1, 0])\nwhile True:\n    try: found.append(3 + next(items))\n    except ZeroDivisionError: found.append(5)\n    except StopIteration: break\npool.apply_async(lambda: 1 // 0, error_callback=lambda error: found.append(6))\npool.close()\npool.join()\nreturn {'a': found}",
        Rows(r#"[{"a": 1}, {"a": 2}, {"a": 5}, {"a": 4}, {"a": 5}, {"a": 6}]"#),
    ),
    (
        "task_that_has_raised_in_a_terminated_pool",
        "from multiprocessing.pool import ThreadPool\nwith ThreadPool(1) as pool: pool.apply_async(lambda: 1 // 0).wait()\nreturn {'a': [1]}",
        Fails("ZeroDivisionError"),
    ),
    (
        "low_thread_that_raises",
        "import _thread\ndef late():\n    time.sleep(.3)\n    self.ctx.publish('t', {'a': [1]})\n    raise KeyError('low')\n_thread.start_new_thread(late, ())",
        Fails("KeyError: 'low'"),
    ),
    (
        "executor_of_a_loop_that_raises",
        "import asyncio\ndef late(n): self.ctx.publish('t', {'a': [10 // n]})\nasync def handle():\n    loop = asyncio.get_running_loop()\n    for n in (1, 0, 2): loop.run_in_executor(None, late, n)\n    await asyncio.sleep(.3)\nreturn handle()",
        Fails("ZeroDivisionError"),
    ),
    (
        "executor_of_a_loop_in_a_thread_that_raises",
        "import asyncio\ndef late(n): self.ctx.publish('t', {'a': [10 // n]})\nasync def work():\n    loop = asyncio.get_running_loop()\n    self.kept = [loop.run_in_executor(None, late, n) for n in (1, 0, 2)]\n    await asyncio.sleep(.3)\nthreading.Thread(target=asyncio.run, args=(work(),)).start()",
        Fails("ZeroDivisionError"),
    ),
    (
        "executor_of_a_loop_whose_failure_was_asked_for",
        "import asyncio\ndef late(n): return 10 // n\nasync def handle():\n    loop = asyncio.get_running_loop()\n    found = await asyncio.gather(*(loop.run_in_executor(None, late, n) for n in (1, 0, 2)), return_exceptions=True)\n    try: await asyncio.to_thread(late, 0)\n    except ZeroDivisionError: found[1] = 0\n    return {'a': found}\nreturn handle()",
        Rows(r#"[{"a": 10}, {"a": 0}, {"a": 5}]"#),
    ),
    (
        "task_that_raises_without_a_log",
        "import asyncio, logging.config\nlogging.config.dictConfig({'version': 1})\nlogging.disable()\nasync def fail(): raise KeyError('task')\nasync def work():\n    self.tasks = [asyncio.create_task(fail())]\n    await asyncio.sleep(.1)\nasyncio.run(work())\nreturn {'a': [1]}",
        Fails("KeyError: 'task'"),
    ),
    (
        "task_that_raises_and_is_forgotten",
        "import asyncio, logging\nasync def fail(): raise KeyError('task')\nasync def work():\n    asyncio.create_task(fail())\n    asyncio.gather(fail(), fail())\n    await asyncio.sleep(.1)\nlogging.getLogger('asyncio').setLevel(100)\nthread = threading.Thread(target=lambda: asyncio.run(work()))\nthread.start()\nthread.join()\nreturn {'a': [1]}",
        Fails("KeyError: 'task'"),
    ),
    (
        "timer_of_a_loop_in_a_daemon",
        "import asyncio\nloop = asyncio.new_event_loop()\nthreading.Thread(target=loop.run_forever, daemon=True).start()\nloop.call_soon_threadsafe(lambda: loop.call_later(.5, lambda: self.ctx.publish('t', {'a': [1]})))",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "timer_of_a_handler",
        "import asyncio\nasync def handle():\n    loop = asyncio.get_running_loop()\n    loop.call_later(.3, lambda: self.ctx.publish('t', {'a': [1]}))\n    loop.call_later(60, print, 'unimportant')\nreturn handle()",
        Rows(r#"[{"a": 1}]"#),
    ),
    (
        "timer_of_a_handler_that_is_too_late",
        "import asyncio\nasync def handle():\n    asyncio.get_running_loop().call_later(60, lambda: self.ctx.publish('t', {'a': [1]}))\nreturn handle()",
        Fails("a timer of asyncio that can publish is due 60 s after"),
    ),
    (
        "timer_that_raises",
        "import asyncio\nasync def handle():\n    asyncio.get_running_loop().call_later(.1, lambda: self.ctx.publish('t', {'a': [1 // 0]}))\nreturn handle()",
        Fails("ZeroDivisionError"),
    ),
    (
        "task_of_a_library_that_raises",
        "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor(1).submit(int, 'x')\nreturn {'a': [1]}",
        Fails("ValueError: invalid literal"),
    ),
    (
        "mapped_task_that_raises",
        "import shutil\nfrom concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(1) as pool: pool.map(shutil.copy, ['missing'], ['x'])\nreturn {'a': [1]}",
        Fails("No such file or directory: 'missing'"),
    ),
    (
        "async_task_that_has_raised",
        "import asyncio\nasync def early(): raise KeyError('early')\nasync def handle():\n    self.task = asyncio.ensure_future(early())\n    await asyncio.sleep(.1)\n    return {'a': [1]}\nreturn handle()",
        Fails("KeyError: 'early'"),
    ),
    (
        "async_task_of_an_own_loop_that_has_raised",
        "import asyncio\nasync def early(): raise KeyError('early')\nasync def handle():\n    asyncio.ensure_future(early())\n    await asyncio.sleep(.1)\nasyncio.run(handle())\nreturn {'a': [1]}",
        Fails("KeyError: 'early'"),
    ),
    (
        "async_failure_that_was_asked_for",
        "import asyncio\nasync def early(): raise KeyError('early')\nasync def handle():\n    assert isinstance((await asyncio.gather(early(), return_exceptions=True))[0], KeyError)\n    try: await asyncio.wait_for(early(), 1)\n    except KeyError: return {'a': [1]}\nreturn handle()",
        Rows(r#"[{"a": 1}]"#),
    ),
];

const CHILDREN_SOURCE: &str = "
import multiprocessing
def square(n): return n * n
def fail(): raise KeyError('child')
def put(queue): queue.put(7)
def publish(ctx): ctx.publish('t', {'a': [1]})
assert __name__ == 'casparian_plugin'
";

#[test]
fn work_that_still_runs_when_the_handler_returns_is_awaited_or_fails_the_job() {
    check_both(CHILDREN_SOURCE, AWAITED);
}

#[test]
fn a_thread_that_does_not_end_is_named_and_ends_with_the_time_out() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, input) = (dir.path().join("p.py"), dir.path().join("in"));
    let body = "\nclass Handler:\n    def execute(self, path):\n        threading.Thread(target=time.sleep, args=(1000,), name='sleeper').start()\n        return {'a': [1]}\n";
    std::fs::write(&plugin, format!("{HEADER}{body}")).unwrap();
    std::fs::write(&input, "").unwrap();
    let inputs = [input.to_str().unwrap()];
    let out = dir.path().join("out");
    let more = ["--job-timeout", "15"];
    let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &more);
    assert_eq!(code, Some(1), "{summary}");
    let file = &summary["files"][0];
    assert!(
        file["error"].as_str().unwrap().contains("limit of 15 s"),
        "{file}"
    );
    let line = "the job waits for the thread 'sleeper'";
    assert!(file["log"].as_str().unwrap().contains(line), "{file}");
}

#[test]
fn threads_may_publish_at_the_same_time() {
    let each = "def work(n):\n    handle = self.ctx.register_topic('t')\n    for i in range(30): self.ctx.publish(handle, FRAME)\nthreads = [threading.Thread(target=work, args=(n,)) for n in range(4)]\nfor thread in threads: thread.start()\nfor thread in threads: thread.join()\nself.ctx.publish('sum', {'n': [1]})";
    let frames = [
        "pa.table({'a': [i] * 10})",
        "pd.DataFrame({'a': [i] * 10, 's': pd.Categorical(['x'] * 10)})",
        "pl.DataFrame({'a': [i] * 10, 's': ['x'] * 10})",
        "[{'a': i}] * 10",
    ];
    // No import before: the threads are the first to need pyarrow and pandas.
    let header = HEADER.split("import os").next().unwrap();
    let header = header.replace("preload", "# preload");
    let dir = tempfile::tempdir().unwrap();
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    for n in 0..3 {
        std::fs::write(inputs.join(format!("{n}")), "").unwrap();
    }
    for start in ["warm", "spawn"] {
        for (place, frame) in frames.iter().enumerate() {
            let imports = match frame.split('.').next() {
                Some("pd") => "import pandas as pd; import pyarrow as pa",
                Some("pl") => "import polars as pl",
                Some("pa") => "import pyarrow as pa",
                _ => "pass",
            };
            let body = each
                .replace("FRAME", frame)
                .replace("    for i", &format!("    {imports}\n    for i"));
            let body = body.replace('\n', "\n        ");
            let plugin = dir.path().join("p.py");
            let source = format!(
                "{header}import threading\nfrom casparian_flow.sdk import BasePlugin\nclass Handler(BasePlugin):\n    def execute(self, path):\n        {body}\n"
            );
            std::fs::write(&plugin, source).unwrap();
            let out = dir.path().join(format!("out-{start}-{place}"));
            let more = ["--plugin-start", start];
            let inputs = [inputs.to_str().unwrap()];
            let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &more);
            assert_eq!(code, Some(0), "{start} {frame}: {summary}");
            assert_eq!(
                summary["totals"]["rows"],
                3 * 1201,
                "{start} {frame}: {summary}"
            );
        }
    }
}

const CHILDREN: &[Case] = &[
    (
        "pools",
        "found = []\nfor method in ('fork', 'spawn', 'forkserver'):\n    with multiprocessing.get_context(method).Pool(2) as pool: found += pool.map(square, [1, 2])\nreturn {'a': found}",
        Rows(r#"[{"a": 1}, {"a": 4}, {"a": 1}, {"a": 4}, {"a": 1}, {"a": 4}]"#),
    ),
    (
        "pools_left_open",
        "self.pools = []\nfound = []\nfor method in ('fork', 'spawn', 'forkserver'):\n    self.pools.append(multiprocessing.get_context(method).Pool(2))\n    found += self.pools[-1].map(square, [3])\nreturn {'a': found}",
        Rows(r#"[{"a": 9}, {"a": 9}, {"a": 9}]"#),
    ),
    (
        "processes",
        "found = []\nfor method in ('fork', 'spawn', 'forkserver'):\n    context = multiprocessing.get_context(method)\n    queue = context.Queue()\n    process = context.Process(target=put, args=(queue,))\n    process.start()\n    found.append(queue.get())\n    process.join()\nreturn {'a': found}",
        Rows(r#"[{"a": 7}, {"a": 7}, {"a": 7}]"#),
    ),
    (
        "executors_with_methods_of_the_handler",
        "from concurrent.futures import ProcessPoolExecutor\nfound = []\nfor method in ('fork', 'spawn', 'forkserver'):\n    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:\n        found += pool.map(self.twice, [4])\nreturn {'a': found}",
        Rows(r#"[{"a": 8}, {"a": 8}, {"a": 8}]"#),
    ),
    (
        "joblib",
        "from joblib import Parallel, delayed\nreturn {'a': Parallel(n_jobs=2)(delayed(square)(n) for n in range(3))}",
        Rows(r#"[{"a": 0}, {"a": 1}, {"a": 4}]"#),
    ),
    ("twice", "return 2 * path", Fails("str is not accepted")),
    (
        "child_that_publishes",
        "multiprocessing.get_context('spawn').Process(target=publish, args=(self.ctx,)).start()\nreturn {'a': [1]}",
        Fails("ended with exit code 1"),
    ),
];

fn semaphores() -> Vec<String> {
    let names = std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("sem.mp-")).collect()
}

#[test]
fn processes_of_every_start_method_find_the_plugin_and_leave_nothing() {
    let before = semaphores();
    for start in ["warm", "spawn"] {
        for sandbox in ["on", "off"] {
            let more = [
                "--plugin-start",
                start,
                "--sandbox",
                sandbox,
                "--job-timeout",
                "60",
            ];
            check(CHILDREN_SOURCE, CHILDREN, &more);
        }
    }
    // Those of other tests come and go; what stays is of a plugin.
    until("no semaphore is left", || {
        semaphores()
            .iter()
            .all(|name| before.contains(name))
            .then_some(())
    });
}

#[test]
fn a_strict_plugin_starts_children_and_may_close_its_streams() {
    let cases: &[Case] = &[
        (
            "pipes",
            "found = []\nfor method in ('fork', 'spawn'):\n    context = multiprocessing.get_context(method)\n    ours, theirs = context.Pipe()\n    context.Process(target=send, args=(theirs,)).start()\n    found.append(ours.recv())\nreturn {'a': found}",
            Rows(r#"[{"a": 7}, {"a": 7}]"#),
        ),
        (
            "closed_streams",
            "import sys\nsys.stdout.close()\nsys.stderr.detach()\nreturn {'a': [1]}",
            Rows(r#"[{"a": 1}]"#),
        ),
        (
            "missing_streams",
            "import sys\nsys.stdout = sys.stderr = None\nreturn {'a': [1]}",
            Rows(r#"[{"a": 1}]"#),
        ),
    ];
    let source = "\nimport multiprocessing\ndef send(pipe): pipe.send(7)\n";
    check(
        source,
        cases,
        &["--sandbox", "strict", "--job-timeout", "60"],
    );
}
