//! Receiving from a socket into memory that nothing has written yet.
//!
//! It is not part of the seam; it lives here because unsafe code lives here. Zeroing the room for a receive, or
//! copying what came, would cost as much as the receive itself.

use std::io;
use std::os::fd::AsFd;

use bytes::BytesMut;
use rustix::net::{RecvFlags, recv};

/// Appends what the socket holds, `bytes_max` of it at most, as far as the spare capacity of `input` takes it; returns the
/// number of bytes, zero at the end of the stream.
pub fn receive(socket: impl AsFd, input: &mut BytesMut, bytes_max: usize) -> io::Result<usize> {
    let room = input.spare_capacity_mut();
    let room_bytes = room.len().min(bytes_max);
    let ((received, _), _) = recv(socket, &mut room[..room_bytes], RecvFlags::empty())?;
    let bytes = received.len();
    let len = input.len() + bytes;
    // SAFETY: recv initialised the first `bytes` bytes of the spare capacity, which begins at the old length.
    unsafe { input.set_len(len) };
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn appends_what_fits_and_then_the_rest_and_then_the_end() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        peer.write_all(b"0123456789").unwrap();
        drop(peer);
        let mut input = BytesMut::with_capacity(8);
        input.extend_from_slice(b"ab");
        let room = input.capacity() - input.len();
        assert_eq!(receive(&socket, &mut input, 3).unwrap(), 3);
        assert_eq!(receive(&socket, &mut input, 100).unwrap(), room.min(10) - 3);
        input.reserve(16);
        receive(&socket, &mut input, 16).unwrap();
        assert_eq!(&input[..], b"ab0123456789");
        assert_eq!(receive(&socket, &mut input, 16).unwrap(), 0);
    }
}
