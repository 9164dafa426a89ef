//! The behaviours that libzmq's own tests assert, and the bugs of other implementations, each
//! as a test of ROUTER and DEALER over tcp and over ipc.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "../support/mod.rs"]
mod support;

mod connections;
mod dealer;
mod others;
mod processes;
mod queues;
mod raw;
mod router;
mod security;

use support::{Net, Transport};

/// One row a behaviour: room::name, then what it asserts.
macro_rules! behaviours {
    ($($room:ident :: $name:ident, $what:literal;)*) => {
        $(
            mod $name {
                #[doc = $what]
                #[test]
                fn tcp() {
                    super::$room::$name(&super::Net::new(super::Transport::Tcp));
                }

                #[doc = $what]
                #[test]
                fn ipc() {
                    super::$room::$name(&super::Net::new(super::Transport::Ipc));
                }
            }
        )*
    };
}

// Names without a project are those of libzmq's tests.
behaviours! {
    dealer::spec_dealer, "five sends reach five peers once each; all five are heard in turn; nobody: NoPeer";
    dealer::full_peer, "a peer that takes nothing is passed over, others flow";
    dealer::immediate, "only established connections are dealt to, or those under way as well";
    dealer::msg_flags, "frames keep their boundaries, empty ones too, and only the last ends a message";
    dealer::order_before_the_end, "what was sent before a connection ends is still received";

    router::spec_router, "heard in turn, each message under its sender's routing ID";
    router::router_mandatory, "an unknown routing ID: an error, or a silent drop, by option";
    router::router_mandatory_hwm, "a full peer refuses, others flow";
    router::router_handover, "a newcomer with a living peer's routing ID takes over, or is refused with ERROR";
    router::handover_of_another_user, "nobody takes the routing ID of another user; the same user does";
    router::handover_reports_the_identity, "events of a peer that was taken over name it, and what was queued for it goes to nobody";
    router::probe_router, "an empty message announces a newcomer";
    router::connect_rid, "a connected peer is addressed by the id we gave it";
    router::issue_566, "a fresh DEALER is reachable by its id within a second, again and again";
    router::peer_disconnect, "a peer that has gone is unroutable";

    queues::hwm, "1, 1000 and unbounded messages wait for a peer; a written message frees its place";
    queues::hwm_of_both_sides, "1 + 1 and 1000 + 1000 messages are under way; one that is received makes room for one";
    queues::gone_with_its_connection, "what was queued for an accepted peer is not for whoever comes under its name";
    queues::sockopt_hwm, "lowering the mark under a full queue loses nothing";
    queues::backpressure, "a receiver that stalls stops the sender, and loses nothing";

    connections::reconnect_ivl, "a lost connection comes back, or stays away by option";
    connections::reconnect_options, "each stop condition ends the attempts, and no other";
    connections::term_endpoint, "a send after disconnect has no peer; an unbound endpoint is closed";
    connections::bind_after_connect, "what was queued before the bind arrives";
    connections::close, "what was sent arrives though bytes of the other side are unread";
    connections::close_is_bounded, "neither a flood nor many peers keep a socket from closing in time";
    connections::held_and_lost, "a message that nobody receives does not keep a lost connection from coming back";
    connections::host_names, "a name leads to its host; one that does not exist is told and disturbs nobody";
    connections::send_timeout, "a send waits for a peer, or for room, and not for ever";
    connections::endless_durations, "no duration is too long";
    connections::rebind, "an endpoint can be bound again after unbind";
    connections::wildcard, "a port or file of the system's choice is reported";
    connections::many_sockets, "a hundred sockets and none of their descriptors stays";
    connections::shutdown_stress, "sockets that go at any moment leave nothing behind";
    connections::monitor, "events come in the order of a connection's life";
    connections::metadata, "properties of the handshake are told, case-insensitively";

    raw::stream, "the bytes of a DEALER, one by one";
    raw::stream_timeout, "silent peers are dropped, accepted or connected to";
    raw::trickled_handshake, "bytes that trickle do not put the end of a handshake off";
    raw::socket_types, "types that talk to each other do, others and bad identities get ERROR";
    raw::old_versions, "ZMTP 1 and 2 are refused with a reason, versions to come are not";
    raw::stream_exceeds_buffer, "8193 bytes in pieces of any size are one message";
    raw::heartbeats, "silence ends a connection; TTL is honoured; contexts come back, 16 bytes at most";
    raw::heartbeats_of_3_0, "a 3.0 peer is not held to PINGs it does not know";
    raw::unread_is_not_silent, "what has come and is unread keeps a connection past its deadlines";
    raw::slow_owner, "an owner that takes its time over each message loses nobody who is there";
    raw::heartbeats_before_handshake, "a PING before READY closes the connection";
    raw::unfinished_messages, "a peer that goes in mid-message leaves nothing behind";
    raw::commands_between_frames, "PING and unknown commands between MORE frames do not disturb";

    security::security_null, "NULL lets NULL in and nothing else";
    security::security_plain, "PLAIN lets the right user in and nobody else";
    security::security_curve, "CURVE lets listed keys in and nobody else";
    security::security_curve_raw, "HELLO and INITIATE of wrong length, name, version, key, cookie and box are refused";
    security::duplicates_are_reported, "a refused duplicate is told under every mechanism";
    security::set_security, "whoever could not come again is closed, others stay";
    security::heartbeats_under_curve, "heartbeats keep a CURVE connection";

    others::zmqrs_143_reconnect, "zmq.rs #143: a peer that restarts is connected again";
    others::zmqrs_216_dead_peer, "zmq.rs #216: a dead peer leaves the round-robin";
    others::zmqrs_210_equal_identities, "zmq.rs #210, #190: a crowd of equal identities neither blocks nor leaks";
    others::zmqrs_286_ready_lengths, "zmq.rs #286: any length in READY is survived";
    others::rzmq_8_short_ping, "rzmq PR 8: a short PING closes its connection alone";
    others::rzmq_9_huge_length, "rzmq PR 9: lengths up to 2^64-1 close their connection alone";
    others::libzmq_4503_duplicate_identity, "libzmq #4503, #2010: a refused duplicate is told, the owner stays reachable";
    others::libzmq_3238_handover_descriptors, "libzmq #3238, #4407: ten thousand handovers leak no descriptor";
    others::libzmq_4665_dead_at_hwm, "libzmq PR 4665: a peer that dies at its mark becomes unroutable";
    others::libzmq_4665_blocked_send, "libzmq PR 4665: a send that may wait for ever ends when its peer is silent";
    others::libzmq_1575_new_identity, "libzmq #1575, #4603: a connecting ROUTER learns the routing ID anew";
    others::libzmq_2709_big_transfer, "libzmq #2709: a large message over a slow link does not look like silence";
    others::cve_2020_15166, "silent connections keep nobody out";
    others::libzmq_2020_memory, "libzmq #2020, #3737: queues are bounded in bytes";
}
