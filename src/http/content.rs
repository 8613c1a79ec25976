//! [`Content`]: the body of the other side, or what has been read of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

pin_project! {
    /// A body as it is, or one of which frames were read before.
    #[project = ContentProj]
    pub(crate) enum Content<B> {
        Through { #[pin] body: B },
        Whole { whole: Whole },
        // The frames go first.
        Begun { begun: Frames, rest: Rest<B> },
        // The server sends none of it, and tells its length in the head, if that is known.
        Unsent { length: Option<u64> },
    }
}

/// A body that has come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// What comes behind the frames that were read.
pub(crate) enum Rest<B> {
    Body(Pin<Box<B>>),
    Error(BoxError),
    End,
}

/// How much more memory than twice their data small frames may take, in bytes.
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

    /// Makes one frame of many small ones. Where data ends, and the next begins, says nothing.
    pub(crate) fn merge_small(&mut self) {
        if self.memory() <= 2 * self.length + OVERHEAD {
            return;
        }
        let Whole { data, trailers } = std::mem::take(self).join();
        let trailers = trailers.map(Frame::trailers);
        let frames = [Frame::data(data)].into_iter().chain(trailers);
        frames.for_each(|frame| self.push(frame));
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.length -= frame.data_ref().map_or(0, Bytes::len);
        Some(frame)
    }

    /// How many frames there are.
    pub(crate) fn count(&self) -> usize {
        self.frames.len()
    }

    /// How many bytes of data are in them.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// How much memory they take, in bytes: empty ones do as well.
    pub(crate) fn memory(&self) -> usize {
        self.length + self.count() * size_of::<Frame<Bytes>>()
    }

    pub(crate) fn join(self) -> Whole {
        let mut joined = Joined::default();
        let mut trailers = None;
        for frame in self.frames {
            match frame.into_data() {
                Ok(data) => joined.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let data = joined.finish();
        Whole { data, trailers }
    }
}

/// Data in one piece. The first is not copied, as mostly it is all.
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
    /// Data without trailers, or nothing at all.
    pub(crate) fn fixed(data: Bytes) -> Self {
        let trailers = None;
        let whole = Whole { data, trailers };
        Self::Whole { whole }
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
            ContentProj::Through { body } => body.poll_frame(cx).map_err(Into::into),
            ContentProj::Whole { whole } => Poll::Ready(whole.next().map(Ok)),
            ContentProj::Begun { begun, rest } => match begun.pop() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => match rest {
                    Rest::Body(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
                    Rest::Error(_) => {
                        let Rest::Error(error) = std::mem::replace(rest, Rest::End) else {
                            unreachable!("matched above");
                        };
                        Poll::Ready(Some(Err(error)))
                    }
                    Rest::End => Poll::Ready(None),
                },
            },
            ContentProj::Unsent { .. } => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Through { body } => body.is_end_stream(),
            Self::Whole { whole } => whole.data.is_empty() && whole.trailers.is_none(),
            Self::Begun { begun, rest } => {
                begun.count() == 0
                    && match rest {
                        Rest::Body(body) => body.is_end_stream(),
                        Rest::Error(_) => false,
                        Rest::End => true,
                    }
            }
            Self::Unsent { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Through { body } => body.size_hint(),
            // With a length announced, HTTP/1 has no place for trailers.
            Self::Whole { whole } => match whole.trailers {
                None => SizeHint::with_exact(whole.data.len() as u64),
                Some(_) => at_least(whole.data.len()),
            },
            Self::Begun { begun, rest } => {
                let mut hint = at_least(begun.length());
                if let Rest::Body(body) = rest {
                    let more = body.size_hint();
                    hint.set_lower(hint.lower() + more.lower());
                    if let Some(upper) = more.upper() {
                        hint.set_upper(upper + begun.length() as u64);
                    }
                }
                hint
            }
            Self::Unsent { length } => length.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

impl Whole {
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
        let whole = frames.join();
        assert_eq!(
            (&whole.data[..], whole.trailers),
            (&expected[..], Some(trailers))
        );
    }
}
