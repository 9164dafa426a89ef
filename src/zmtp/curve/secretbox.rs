//! NaCl's secretbox: XSalsa20-Poly1305, in one step or in parts.
//!
//! A box is a tag of 16 bytes and the ciphertext. The first 32 bytes of the keystream are the key of
//! Poly1305; the plaintext is encrypted with the bytes that follow.

use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};
use salsa20::XSalsa20;
use salsa20::cipher::consts::U10;
use salsa20::cipher::{KeyIvInit, StreamCipher};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Size of a Poly1305 tag, in bytes.
pub(super) const TAG_SIZE: usize = 16;
/// A box is processed in whole blocks of the cipher, except for its end.
const BLOCK_SIZE: usize = 64;
/// Bytes that stay in the processor's first cache between the cipher and the authenticator.
const STEP_SIZE: usize = 16 << 10;

/// A key of boxes, wiped when it is dropped.
pub(in crate::zmtp) struct BoxKey(Zeroizing<[u8; 32]>);

impl BoxKey {
    /// The key of a point of X25519: its HSalsa20, as NaCl's `crypto_box_beforenm`. Boxed, so that
    /// moving it leaves no copy of the key in memory.
    pub(super) fn of_shared_point(point: &[u8; 32]) -> Box<Self> {
        let mut derived = salsa20::hsalsa::<U10>(point.into(), (&[0; 16]).into());
        let key = Box::new(BoxKey(Zeroizing::new(derived.into())));
        derived.as_mut_slice().zeroize();
        key
    }

    pub(super) fn new(key: &[u8; 32]) -> Self {
        BoxKey(Zeroizing::new(*key))
    }
}

/// A box of which a part has been processed.
pub(super) struct BoxStream {
    cipher: XSalsa20,
    mac: Poly1305,
}

impl BoxStream {
    pub(super) fn new(key: &BoxKey, nonce: &[u8; 24]) -> Self {
        let mut cipher = XSalsa20::new((&*key.0).into(), nonce.into());
        let mut mac_key = poly1305::Key::default();
        cipher.apply_keystream(&mut mac_key);
        let mac = Poly1305::new(&mac_key);
        mac_key.as_mut_slice().zeroize();
        BoxStream { cipher, mac }
    }

    /// Encrypts the next bytes in place, as far as they are whole blocks. Returns their number; the
    /// next call begins after them.
    pub(super) fn seal(&mut self, plain: &mut [u8]) -> usize {
        let (blocks, _) = whole_blocks(plain);
        for step in blocks.chunks_mut(STEP_SIZE) {
            self.cipher.apply_keystream(step);
            self.mac.update_padded(step);
        }
        blocks.len()
    }

    /// Encrypts all that is left in place, and returns the tag.
    pub(super) fn finish_seal(mut self, plain: &mut [u8]) -> [u8; TAG_SIZE] {
        let done = self.seal(plain);
        let (_, rest) = plain.split_at_mut(done);
        self.cipher.apply_keystream(rest);
        self.mac.compute_unpadded(rest).into()
    }

    /// Decrypts the next bytes in place, as far as they are whole blocks. Returns their number; the
    /// next call begins after them. The plaintext must not be used before [`BoxStream::finish_open`].
    pub(super) fn open(&mut self, sealed: &mut [u8]) -> usize {
        let (blocks, _) = whole_blocks(sealed);
        for step in blocks.chunks_mut(STEP_SIZE) {
            self.mac.update_padded(step);
            self.cipher.apply_keystream(step);
        }
        blocks.len()
    }

    /// Decrypts all that is left in place. Returns whether the tag is right, compared in constant
    /// time; if not, no byte of the box may be used.
    #[must_use]
    pub(super) fn finish_open(mut self, sealed: &mut [u8], tag: &[u8; TAG_SIZE]) -> bool {
        let done = self.open(sealed);
        let (_, rest) = sealed.split_at_mut(done);
        let right = self.mac.compute_unpadded(rest);
        self.cipher.apply_keystream(rest);
        right.as_slice().ct_eq(tag).into()
    }
}

fn whole_blocks(bytes: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let size = bytes.len() - bytes.len() % BLOCK_SIZE;
    bytes.split_at_mut(size)
}

/// Appends box[plain].
pub(super) fn append_box(out: &mut Vec<u8>, key: &BoxKey, nonce: [u8; 24], plain: &[u8]) {
    out.extend_from_slice(&[0; TAG_SIZE]);
    let start = out.len();
    out.extend_from_slice(plain);
    let body = out.get_mut(start..).unwrap_or(&mut []);
    #[cfg(fuzzing)]
    super::repeatable::tamper(body);
    let tag = BoxStream::new(key, &nonce).finish_seal(body);
    if let Some(space) = out.get_mut(start - TAG_SIZE..start) {
        space.copy_from_slice(&tag);
    }
}

/// Decrypts a box in place and returns the plaintext behind its tag; `None` if the tag is wrong.
pub(super) fn open_in_place<'a>(
    key: &BoxKey,
    nonce: [u8; 24],
    bytes: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let (tag, body) = bytes.split_first_chunk_mut::<TAG_SIZE>()?;
    BoxStream::new(key, &nonce)
        .finish_open(body, tag)
        .then_some(body)
}

#[cfg(test)]
mod tests {
    use crypto_secretbox::{AeadInPlace, KeyInit, XSalsa20Poly1305};

    use super::*;

    /// Every size around the blocks of cipher and authenticator, in every division into parts, gives
    /// the bytes of another implementation; a changed bit of box or tag is noticed.
    #[test]
    fn boxes_are_the_same_in_parts_and_of_another_implementation() {
        let (key, nonce) = ([7; 32], [9; 24]);
        let other = XSalsa20Poly1305::new(&key.into());
        for size in (0..200).chain([STEP_SIZE - 1, STEP_SIZE + 65, 100_000]) {
            let plain: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            let mut expected = plain.clone();
            let tag = other.encrypt_in_place_detached(&nonce.into(), b"", &mut expected);
            let tag: [u8; TAG_SIZE] = tag.unwrap().into();
            for part in [1, 63, 64, 65, 1_000, 1 << 20] {
                let mut bytes = plain.clone();
                let mut stream = BoxStream::new(&BoxKey::new(&key), &nonce);
                let mut done = 0;
                for end in (0..size).step_by(part) {
                    done += stream.seal(&mut bytes[done..end]);
                }
                assert_eq!(
                    stream.finish_seal(&mut bytes[done..]),
                    tag,
                    "{size}, {part}"
                );
                assert!(bytes == expected, "{size}, {part}");

                let mut wrong = bytes.clone();
                let mut stream = BoxStream::new(&BoxKey::new(&key), &nonce);
                let mut done = 0;
                for end in (0..size).step_by(part) {
                    done += stream.open(&mut bytes[done..end]);
                }
                assert!(stream.finish_open(&mut bytes[done..], &tag), "{size}");
                assert!(bytes == plain, "{size}, {part}");

                let stream = || BoxStream::new(&BoxKey::new(&key), &nonce);
                let mut bad_tag = tag;
                bad_tag[size % TAG_SIZE] ^= 1;
                assert!(
                    !stream().finish_open(&mut wrong.clone(), &bad_tag),
                    "{size}"
                );
                if size > 0 {
                    wrong[size / 2] ^= 128;
                    assert!(!stream().finish_open(&mut wrong, &tag), "{size}");
                }
            }
        }
    }
}
