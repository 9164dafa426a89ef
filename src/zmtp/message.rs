//! A received message as a borrowed view into its connection's receive buffer.

/// Position and size of one frame's body, relative to the first byte of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) size: usize,
}

// One for each frame of a message.
const _: () = assert!(size_of::<Span>() <= 16);

/// One or more frames, valid until the next call of [`Connection::poll`](super::Connection::poll).
#[derive(Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

// Passed by value.
const _: () = assert!(size_of::<Message<'_>>() <= 32);

impl<'a> Message<'a> {
    pub(crate) fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        Message { bytes, spans }
    }

    /// Number of frames, at least one.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// True for a view without frames: the connection has no complete message.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Body of frame `index`.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let span = self.spans.get(index)?;
        self.bytes.get(span.start..)?.get(..span.size)
    }

    /// The frames' bodies in order.
    pub fn iter(&self) -> Bodies<'a> {
        Bodies {
            message: *self,
            next: 0,
        }
    }

    /// Total size of all bodies, in bytes.
    pub fn size(&self) -> usize {
        self.spans.iter().map(|span| span.size).sum()
    }

    /// Copies the frames into owned vectors.
    pub fn to_vecs(&self) -> Vec<Vec<u8>> {
        self.iter().map(<[u8]>::to_vec).collect()
    }
}

impl<'a> IntoIterator for Message<'a> {
    type Item = &'a [u8];
    type IntoIter = Bodies<'a>;

    fn into_iter(self) -> Bodies<'a> {
        self.iter()
    }
}

/// The bodies of a message's frames in order.
#[derive(Clone, Debug)]
pub struct Bodies<'a> {
    message: Message<'a>,
    next: usize,
}

impl<'a> Iterator for Bodies<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let body = self.message.get(self.next)?;
        self.next += 1;
        Some(body)
    }
}

impl std::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|part| format!("{} bytes", part.len())))
            .finish()
    }
}
