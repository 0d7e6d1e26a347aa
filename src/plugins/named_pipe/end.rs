//! A read end of a FIFO: its bytes become lines, its lines events, and these go to the
//! dispatcher. Runs on the plugin's thread; owns the FIFO and a line that has begun.

use std::io::ErrorKind;

use super::fifo::{Fifo, BUFFER};
use super::framing::{self, Framing, Piece};
use super::line::{self, Quoted};
use super::NAME;
use crate::dispatcher::{Inlet, Refused};
use crate::flow::FlowState;
use crate::registry::Names;

/// The length of a line with short addresses, in bytes.
const TYPICAL: usize = 40;

/// A FIFO and how far it has been read.
pub(super) struct End {
    pub(super) fifo: Fifo,
    pub(super) framing: Framing,
    /// It has to be read, whatever poll says.
    pub(super) due: bool,
    /// It cannot be polled now, since that would return at once.
    pub(super) deaf: bool,
}

/// What a read yielded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The last writer has closed.
    End,
    /// An error, which was said.
    Failed,
}

/// The daemon is stopping, so nobody takes events any more.
#[derive(Debug)]
pub(super) struct Stopping;

impl End {
    /// Reads once and hands on what the bytes say.
    pub(super) fn read(
        &mut self,
        chunk: &mut [u8],
        names: &Names,
        out: &Inlet,
    ) -> std::result::Result<Got, Stopping> {
        self.due = false;
        let got = match self.fifo.read(chunk) {
            Ok(0) => Got::End,
            Ok(length) => Got::Bytes(length),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Got::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => Got::Bytes(0),
            Err(error) => {
                crate::warn_limited!("{NAME}: cannot read: {error}");
                return Ok(Got::Failed);
            }
        };
        let registry = names.get();
        let mut malformed = 0;
        // All at once: musl returns what a growing vector leaves behind to the kernel.
        let mut events = Vec::with_capacity(match got {
            Got::Bytes(length) => length.div_ceil(TYPICAL),
            _ => 1,
        });
        let mut take = |piece: Piece<'_>| match piece {
            Piece::Line(text) => match line::parse(text, &registry) {
                Ok(Some(event)) if event.state == FlowState::End => events.push(event),
                Ok(Some(event)) => match names.judge(&registry, event.tag, "namedPipe") {
                    Ok(()) => events.push(event),
                    Err(why) => {
                        malformed += 1;
                        crate::warn_limited!("{NAME}: ignored {}: {why}", Quoted(text));
                    }
                },
                Ok(None) => {}
                Err(fault) => {
                    malformed += 1;
                    crate::warn_limited!("{NAME}: ignored {}: {fault}", Quoted(text));
                }
            },
            Piece::TooLong(text) => {
                malformed += 1;
                let limit = framing::LIMIT;
                crate::warn_limited!("{NAME}: ignored {}: longer than {limit} bytes", Quoted(text));
            }
        };
        match got {
            Got::Bytes(length) => {
                self.due = true;
                self.framing.feed(&chunk[..length], &mut take);
            }
            _ => self.framing.finish(&mut take),
        }
        if malformed > 0 {
            out.malformed(malformed);
        }
        match out.send_each(events) {
            Ok(()) => {}
            Err(refused @ Refused::Full { events, .. }) => {
                crate::warn_limited!("{NAME}: cannot open {events} flows: {refused}");
            }
            Err(Refused::Stopping) => return Err(Stopping),
        }
        Ok(got)
    }

    /// Reads what is there by now, and no more than a full buffer of it, so that
    /// no writer can hold us here.
    pub(super) fn drain(
        &mut self,
        chunk: &mut [u8],
        names: &Names,
        out: &Inlet,
    ) -> std::result::Result<(), Stopping> {
        let mut drained = 0;
        while drained < BUFFER {
            match self.read(chunk, names, out)? {
                Got::Bytes(length) => drained += length,
                Got::Nothing | Got::End | Got::Failed => break,
            }
        }
        Ok(())
    }
}
