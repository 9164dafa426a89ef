//! Several sockets in virtual time: their types, options, connections, what their owners do, delays, short reads
//! and writes, and cut connections are chosen by the input. Messages of a connection must be in order, complete,
//! and received once; without cuts none may be lost unnoticed. The state must be consistent at each step, and
//! in the end every DEALER is connected and has sent all.

pub fn run(data: &[u8]) {
    casparian::fuzzing::sockets_in_virtual_time(data);
}
