//! Unit tests of `stream.rs`.

use super::*;

#[test]
fn a_stale_socket_file_is_replaced_a_live_one_and_a_plain_file_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let endpoint = Endpoint::Ipc(path.clone());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let options = StreamOptions::default();
    let live = Listener::bind(&endpoint, &options, false).expect("stale file replaced");
    let error = Listener::bind(&endpoint, &options, false).expect_err("live socket kept");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(live);
    assert!(!path.exists(), "our socket file goes with us");
    fs::write(&path, "data").unwrap();
    assert!(Listener::bind(&endpoint, &options, false).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"data");
}
