//! A queue of tasks for many workers: each task is done at least once, whatever workers are lost.
//!
//! `cargo run --example work_queue` runs the queue and 50 workers in one process. `… -- queue
//! tcp://127.0.0.1:5555 TASKS` and `… -- worker tcp://127.0.0.1:5555 NAME` each run one side.
//!
//! A worker is a DEALER: it sends `more` when it can take a task, receives `task`, a number and the task's
//! data, and sends `done`, the number and the result. The queue gives a task to one worker. It gives the
//! tasks of a worker whose connection ended to other workers, and takes the first result of a task.

#![allow(clippy::indexing_slicing)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::error::Error;
use std::time::Duration;

use casparian::socket::{self, Dealer, Event, Next, Options, Router};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest time without any message.
const PATIENCE: Duration = Duration::from_secs(20);
/// A worker that sends nothing for this time, not even PONG, is lost.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Listens at an endpoint. Returns the endpoint with the port that the system chose.
pub(crate) fn bind(endpoint: &str) -> Outcome<(Router, String)> {
    let options = Options::new()
        .heartbeat_ivl(HEARTBEAT)
        .heartbeat_timeout(5 * HEARTBEAT);
    let mut router = Router::new(options)?;
    let bound = router.bind(endpoint)?.to_string();
    Ok((router, bound))
}

/// Has all tasks done, and returns their results in order. Then tells the workers to end.
pub(crate) fn run(mut router: Router, tasks: &[Vec<u8>]) -> Outcome<Vec<Vec<u8>>> {
    let mut results: Vec<Option<Vec<u8>>> = vec![None; tasks.len()];
    let mut left = tasks.len();
    let mut queue: VecDeque<usize> = (0..tasks.len()).collect();
    // Workers that can take a task, and the tasks that workers have.
    let mut free: VecDeque<Vec<u8>> = VecDeque::new();
    let mut workers: HashSet<Vec<u8>> = HashSet::new();
    let mut running: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    while left > 0 {
        match router.next(Some(PATIENCE))? {
            None => return Err("nobody works".into()),
            Some(Next::Event(Event::Disconnected { routing_id, .. })) => {
                workers.remove(&routing_id);
                free.retain(|worker| *worker != routing_id);
                let lost = running.remove(&routing_id).unwrap_or_default();
                queue.extend(lost.into_iter().filter(|task| is_open(&results, *task)));
            }
            Some(Next::Event(_)) => {}
            Some(Next::Message((worker, message))) => match message.get(0) {
                Some(b"more") => {
                    workers.insert(worker.to_vec());
                    free.push_back(worker.to_vec());
                }
                Some(b"done") => {
                    let number: [u8; 8] = message.get(1).unwrap_or_default().try_into()?;
                    let task = usize::try_from(u64::from_be_bytes(number))?;
                    if let Some(running) = running.get_mut(worker) {
                        running.retain(|other| *other != task);
                    }
                    if is_open(&results, task) {
                        results[task] = Some(message.get(2).unwrap_or_default().to_vec());
                        left -= 1;
                    }
                }
                other => eprintln!("{worker:?} sends {other:?}"),
            },
        }
        while let (Some(task), Some(worker)) = (queue.front().copied(), free.pop_front()) {
            let number = (task as u64).to_be_bytes();
            match router.send(&worker, &[b"task", &number, &tasks[task]]) {
                Ok(()) => {
                    queue.pop_front();
                    running.entry(worker).or_default().push(task);
                }
                // It has just disconnected; the event follows.
                Err(socket::Error::Unroutable) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for worker in &workers {
        if let Err(error) = router.send(worker, &[b"end"]) {
            eprintln!("{worker:?} is not told to end: {error}");
        }
    }
    router.close(PATIENCE)?;
    Ok(results.into_iter().flatten().collect())
}

fn is_open(results: &[Option<Vec<u8>>], task: usize) -> bool {
    results.get(task).is_some_and(Option::is_none)
}

/// Does tasks until the queue has no more. The result of a task is the sum of its bytes.
pub(crate) fn work(endpoint: &str, name: &str) -> Outcome<usize> {
    let options = Options::new().routing_id(name).heartbeat_ivl(HEARTBEAT);
    let mut dealer = Dealer::new(options)?;
    dealer.connect(endpoint)?;
    let mut done = 0;
    loop {
        dealer.send(&[b"more"])?;
        let Some(message) = dealer.receive(Some(PATIENCE))? else {
            return Err(format!("{name}: no task for {PATIENCE:?}").into());
        };
        let (Some(b"task"), Some(number), Some(data)) =
            (message.get(0), message.get(1), message.get(2))
        else {
            return Ok(done);
        };
        let number = number.to_vec();
        let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
        dealer.send(&[b"done", &number, sum.to_string().as_bytes()])?;
        done += 1;
    }
}

/// Tasks of different sizes.
pub(crate) fn tasks(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|task| vec![task as u8; task % 100])
        .collect()
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["queue", endpoint, count] => {
            let (router, endpoint) = bind(endpoint)?;
            println!("listening on {endpoint}");
            println!("{} results", run(router, &tasks(count.parse()?))?.len());
        }
        ["worker", endpoint, name] => println!("{name}: {} tasks", work(endpoint, name)?),
        [] => {
            let (router, endpoint) = bind("tcp://127.0.0.1:*")?;
            let results = std::thread::scope(|scope| {
                let endpoint = &endpoint;
                for number in 0..50 {
                    scope.spawn(move || {
                        let name = format!("w-{number}");
                        match work(endpoint, &name) {
                            Ok(count) => println!("{name}: {count} tasks"),
                            Err(error) => eprintln!("{error}"),
                        }
                    });
                }
                run(router, &tasks(10_000))
            })?;
            println!("{} results", results.len());
        }
        _ => return Err("usage: work_queue [queue ENDPOINT TASKS | worker ENDPOINT NAME]".into()),
    }
    Ok(())
}
