//! Writes the log in a thread of its own, so that nobody who logs ever waits for whoever reads it.
//!
//! A pipe that nobody reads is full after 64 KiB. A worker that then writes to it stands still, and
//! with it every admission, `/livez` and the shutdown. So lines go to a buffer with a limit, and
//! the thread writes what has come in at once. Lines that find the buffer full are dropped and
//! counted.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// The most bytes that wait to be written, some thousand lines.
const MAX_BUFFERED_BYTES: usize = 1024 * 1024;
/// The capacity that an empty buffer keeps.
const KEPT_CAPACITY: usize = 64 * 1024;

/// A log that a thread writes; clones share it.
#[derive(Debug, Clone, Default)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    /// Wakes the thread: there is something to write.
    filled: Condvar,
    /// Wakes whoever flushes: everything is written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    waiting: Vec<u8>,
    /// Whether the thread writes what it has taken.
    is_writing: bool,
    /// The lines that found no room.
    dropped: u64,
}

impl LogWriter {
    /// Starts the thread, which writes to `output` for as long as the process lives.
    pub fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self::default();
        let shared = writer.0.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_to(&mut output))?;
        Ok(writer)
    }

    /// Waits until every line so far is written, but not longer than `limit`.
    pub fn flush_within(&self, limit: Duration) {
        let buffer = self.0.buffer();
        let is_busy = |buffer: &mut Buffer| buffer.is_writing || !buffer.waiting.is_empty();
        let waited = self.0.emptied.wait_timeout_while(buffer, limit, is_busy);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns how many lines were dropped so far, because nobody read the log fast enough.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.buffer().dropped
    }
}

impl Shared {
    fn write_to(&self, output: &mut impl Write) {
        let mut taken = Vec::new();
        let mut buffer = self.buffer();
        loop {
            buffer = if buffer.waiting.is_empty() {
                self.emptied.notify_all();
                let filled = self.filled.wait(buffer);
                filled.unwrap_or_else(PoisonError::into_inner)
            } else {
                std::mem::swap(&mut buffer.waiting, &mut taken);
                buffer.is_writing = true;
                drop(buffer);
                // Where the log can't be written, nothing is left that could be told so.
                let _ = output.write_all(&taken).and_then(|()| output.flush());
                taken.clear();
                taken.shrink_to(KEPT_CAPACITY);
                let mut buffer = self.buffer();
                buffer.is_writing = false;
                buffer
            };
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for LogWriter {
    /// Takes a whole line, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.buffer();
        if buffer.waiting.len() + line.len() > MAX_BUFFERED_BYTES {
            buffer.dropped += 1;
            return Ok(line.len());
        }
        let is_first = buffer.waiting.is_empty();
        buffer.waiting.extend_from_slice(line);
        let wakes = is_first && !buffer.is_writing;
        drop(buffer);
        if wakes {
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Waits for a permit before each write, and passes on what was written.
    struct Reader {
        permits: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.permits.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log() -> (LogWriter, SyncSender<()>, Receiver<Vec<u8>>) {
        let (permit, permits) = sync_channel(1);
        let (written, lines) = channel();
        let writer = LogWriter::start(Reader { permits, written }).expect("a thread");
        (writer, permit, lines)
    }

    fn write(writer: &LogWriter, line: &[u8]) {
        writer.clone().write_all(line).expect("written");
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (writer, permit, lines) = log();
        let mut expected = String::new();
        for number in 0..100 {
            let line = format!("line {number}\n");
            write(&writer, line.as_bytes());
            expected.push_str(&line);
        }
        let mut text = Vec::new();
        while text.len() < expected.len() {
            permit.send(()).expect("the thread lives");
            text.extend(lines.recv_timeout(LONG).expect("a write"));
        }
        assert_eq!(String::from_utf8(text).expect("text"), expected);
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn full_buffer_drops_lines_and_makes_nobody_wait() {
        let (writer, permit, lines) = log();
        let line = vec![b'x'; 1024];
        // The thread has taken the first line, and waits for its reader.
        write(&writer, b"first\n");
        while !writer.0.buffer().is_writing {
            thread::yield_now();
        }
        for _ in 0..2 * MAX_BUFFERED_BYTES / line.len() {
            write(&writer, &line);
        }
        assert_eq!(writer.dropped(), 1024);
        assert!(writer.0.buffer().waiting.len() <= MAX_BUFFERED_BYTES);
        // It goes on once somebody reads.
        for _ in 0..2 {
            permit.send(()).expect("the thread lives");
        }
        assert_eq!(lines.recv_timeout(LONG).expect("a write"), b"first\n");
        let rest = lines.recv_timeout(LONG).expect("a write");
        assert_eq!(rest.len(), MAX_BUFFERED_BYTES);
        writer.flush_within(LONG);
        write(&writer, b"later\n");
        permit.send(()).expect("the thread lives");
        assert_eq!(lines.recv_timeout(LONG).expect("a write"), b"later\n");
        assert_eq!(writer.dropped(), 1024);
    }

    #[test]
    fn flush_waits_no_longer_than_its_limit() {
        let (writer, permit, lines) = log();
        writer.flush_within(LONG);
        write(&writer, b"line\n");
        writer.flush_within(Duration::from_millis(10));
        assert!(lines.try_recv().is_err(), "nobody reads");
        permit.send(()).expect("the thread lives");
        writer.flush_within(LONG);
        assert_eq!(lines.try_recv().as_deref(), Ok(&b"line\n"[..]));
    }
}
