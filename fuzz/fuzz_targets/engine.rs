#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casparian_fuzz::engine::run(data));
