//! [`Content`]: a body that passes through, or what was read of it before.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

pin_project! {
    /// A body that passes through, or one of which frames were read before.
    #[project = ContentProj]
    pub(crate) enum Content<B> {
        // The body of the other side, as it is.
        Passthrough { #[pin] body: B },
        // It was read to its end.
        Collected { collected: Collected },
        // Its first frames were read. They go out before the rest.
        Prefixed { prefix: Frames, rest: Rest<B> },
        // The server sends none of it, and tells its length in the head, if that is known.
        Unsent { length: Option<u64> },
    }
}

/// A body that was read to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// What follows the frames that were read.
pub(crate) enum Rest<B> {
    Body(Pin<Box<B>>),
    Error(BoxError),
    End,
}

/// The memory that small frames may take beyond twice the length of their data, in bytes.
const OVERHEAD: usize = 64 * 1024;

/// The first frames of a body.
#[derive(Default)]
pub(crate) struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    length: usize,
}

impl Frames {
    pub(crate) fn push(&mut self, frame: Frame<Bytes>) {
        self.length += frame.data_ref().map_or(0, Bytes::len);
        self.frames.push_back(frame);
    }

    /// Makes one frame of many small ones, if they take too much memory. Where one frame of data
    /// ends and the next begins has no meaning.
    pub(crate) fn merge_small(&mut self) {
        if self.memory() <= 2 * self.length + OVERHEAD {
            return;
        }
        let Collected { data, trailers } = std::mem::take(self).collect();
        let trailers = trailers.map(Frame::trailers);
        let frames = [Frame::data(data)].into_iter().chain(trailers);
        frames.for_each(|frame| self.push(frame));
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.length -= frame.data_ref().map_or(0, Bytes::len);
        Some(frame)
    }

    /// Returns the number of frames.
    pub(crate) fn count(&self) -> usize {
        self.frames.len()
    }

    /// Returns the number of bytes of data in them.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Returns the memory that they take, in bytes. Empty frames take some as well.
    pub(crate) fn memory(&self) -> usize {
        self.length + self.count() * size_of::<Frame<Bytes>>()
    }

    /// Makes a collected body of them, if they are all that there is.
    pub(crate) fn collect(self) -> Collected {
        let mut joined = Joined::default();
        let mut trailers = None;
        for frame in self.frames {
            match frame.into_data() {
                Ok(data) => joined.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let data = joined.finish();
        Collected { data, trailers }
    }
}

/// Joins data to one piece. A single piece, the usual case, is not copied.
#[derive(Default)]
pub(crate) struct Joined {
    first: Bytes,
    all: BytesMut,
}

impl Joined {
    pub(crate) fn push(&mut self, data: Bytes) {
        if self.length() == 0 {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&data);
    }

    pub(crate) fn length(&self) -> usize {
        self.first.len().max(self.all.len())
    }

    pub(crate) fn finish(self) -> Bytes {
        match self.all.is_empty() {
            true => self.first,
            false => self.all.freeze(),
        }
    }
}

impl<B> Content<B> {
    /// Makes a body of data without trailers. Without data, it is an empty body.
    pub(crate) fn fixed(data: Bytes) -> Self {
        Self::Collected {
            collected: Collected::fixed(data),
        }
    }
}

impl<B> Body for Content<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            ContentProj::Passthrough { body } => body.poll_frame(cx).map_err(Into::into),
            ContentProj::Collected { collected } => Poll::Ready(collected.next().map(Ok)),
            ContentProj::Prefixed { prefix, rest } => match prefix.pop() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => rest.poll_frame(cx),
            },
            ContentProj::Unsent { .. } => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passthrough { body } => body.is_end_stream(),
            Self::Collected { collected } => {
                collected.data.is_empty() && collected.trailers.is_none()
            }
            Self::Prefixed { prefix, rest } => prefix.count() == 0 && rest.is_end_stream(),
            Self::Unsent { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passthrough { body } => body.size_hint(),
            // With a length announced, HTTP/1 has no place for trailers.
            Self::Collected { collected } => match collected.trailers {
                None => SizeHint::with_exact(collected.data.len() as u64),
                Some(_) => at_least(collected.data.len()),
            },
            Self::Prefixed { prefix, rest } => {
                let mut hint = at_least(prefix.length());
                if let Rest::Body(body) = rest {
                    let more = body.size_hint();
                    hint.set_lower(hint.lower() + more.lower());
                    if let Some(upper) = more.upper() {
                        hint.set_upper(upper + prefix.length() as u64);
                    }
                }
                hint
            }
            Self::Unsent { length } => length.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

impl<B> Rest<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Body(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
            Self::Error(_) => {
                let Self::Error(error) = std::mem::replace(self, Self::End) else {
                    unreachable!("matched above");
                };
                Poll::Ready(Some(Err(error)))
            }
            Self::End => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Body(body) => body.is_end_stream(),
            Self::Error(_) => false,
            Self::End => true,
        }
    }
}

impl Collected {
    /// Makes a body of data without trailers.
    pub(crate) fn fixed(data: Bytes) -> Self {
        let trailers = None;
        Self { data, trailers }
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        if !self.data.is_empty() {
            return Some(Frame::data(std::mem::take(&mut self.data)));
        }
        self.trailers.take().map(Frame::trailers)
    }
}

fn at_least(length: usize) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(length as u64);
    hint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_are_kept_take_not_much_more_memory_than_their_data() {
        let (mut frames, mut expected) = (Frames::default(), Vec::new());
        for number in 0..200_000_u32 {
            // Every other one is empty.
            let data = Bytes::copy_from_slice(&[number as u8][..(number % 2) as usize]);
            expected.extend_from_slice(&data);
            frames.push(Frame::data(data));
            frames.merge_small();
            assert!(frames.memory() <= 2 * frames.length() + OVERHEAD);
        }
        let trailers = HeaderMap::new();
        frames.push(Frame::trailers(trailers.clone()));
        assert_eq!(frames.length(), expected.len());
        let collected = frames.collect();
        assert_eq!(
            (&collected.data[..], collected.trailers),
            (&expected[..], Some(trailers))
        );
    }
}
