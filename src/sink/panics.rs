//! Converts panics of libraries that process a plugin's data into errors.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a function and returns the message of its panic as an error. The source position of the panic is
/// only logged, because it contains a path of the machine that built the program. Such a panic prints
/// nothing to stderr. Panics of other threads are reported as before.
pub fn quiet_panics<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                return before(info);
            }
            let text = message(info.payload());
            if let Some(at) = info.location() {
                log::info!("panic at {}:{}: {text}", at.file(), at.line());
            }
            MESSAGE.with(|message| *message.borrow_mut() = Some(text));
        }));
    });
    let outer = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(outer);
    result.map_err(|payload| {
        let kept = MESSAGE.with(|message| message.borrow_mut().take());
        kept.unwrap_or_else(|| message(payload.as_ref()))
    })
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}
