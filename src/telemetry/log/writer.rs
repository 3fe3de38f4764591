//! Writes the log in a thread of its own, so that nobody who logs ever waits for whoever reads it.
//!
//! A pipe that nobody reads is full after 64 KiB. A worker that then writes to it stands still, and
//! with it every admission, `/livez` and the shutdown. So lines go to a buffer with a limit, and
//! the thread writes them. It gathers lines for some milliseconds first: to wake it and to write for
//! each line would cost more than the line itself. Lines that find the buffer full are dropped and
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
/// How long the thread gathers lines after the first.
const GATHERING: Duration = Duration::from_millis(5);
/// So many bytes are written at once, however short the gathering was.
const MANY_BYTES: usize = 32 * 1024;

/// A log that a thread writes; clones share it.
#[derive(Debug, Clone, Default)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    /// Wakes the thread: there is something to write, or it has gathered for long enough.
    filled: Condvar,
    /// Wakes whoever flushes: everything is written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    waiting: Vec<u8>,
    thread: Thread,
    /// How many wait until everything is written.
    flushing: usize,
    /// The lines that found no room.
    dropped: u64,
}

/// The state of the thread.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// It waits for a first line.
    #[default]
    Idle,
    /// It waits for more lines.
    Gathering,
    /// It writes what it has taken.
    Writing,
}

impl Buffer {
    /// Returns whether the lines are written without waiting for more.
    fn is_urgent(&self) -> bool {
        self.flushing > 0 || self.waiting.len() >= MANY_BYTES
    }
}

impl LogWriter {
    /// Starts the thread, which writes to `output` for as long as the process lives.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        Self::start_gathering(output, GATHERING)
    }

    fn start_gathering(
        mut output: impl Write + Send + 'static,
        gathering: Duration,
    ) -> io::Result<Self> {
        let writer = Self::default();
        let shared = writer.0.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_to(&mut output, gathering))?;
        Ok(writer)
    }

    /// Waits until every line so far is written, but not longer than `limit`.
    pub fn flush_within(&self, limit: Duration) {
        let mut buffer = self.0.buffer();
        buffer.flushing += 1;
        self.0.filled.notify_one();
        let is_busy =
            |buffer: &mut Buffer| buffer.thread == Thread::Writing || !buffer.waiting.is_empty();
        let waited = self.0.emptied.wait_timeout_while(buffer, limit, is_busy);
        let (mut buffer, _) = waited.unwrap_or_else(PoisonError::into_inner);
        buffer.flushing -= 1;
    }

    /// Returns how many lines were dropped so far, because nobody read the log fast enough.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.buffer().dropped
    }
}

impl Shared {
    fn write_to(&self, output: &mut impl Write, gathering: Duration) {
        let mut taken = Vec::new();
        let mut buffer = self.buffer();
        loop {
            if buffer.waiting.is_empty() {
                buffer.thread = Thread::Idle;
                self.emptied.notify_all();
                let is_empty = |buffer: &mut Buffer| buffer.waiting.is_empty();
                let filled = self.filled.wait_while(buffer, is_empty);
                buffer = filled.unwrap_or_else(PoisonError::into_inner);
            }
            buffer.thread = Thread::Gathering;
            let has_time = |buffer: &mut Buffer| !buffer.is_urgent();
            let gathered = self.filled.wait_timeout_while(buffer, gathering, has_time);
            (buffer, _) = gathered.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut buffer.waiting, &mut taken);
            buffer.thread = Thread::Writing;
            drop(buffer);
            // Where the log can't be written, nothing is left that could be told so.
            let _ = output.write_all(&taken).and_then(|()| output.flush());
            taken.clear();
            taken.shrink_to(KEPT_CAPACITY);
            buffer = self.buffer();
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
        let was_urgent = buffer.is_urgent();
        buffer.waiting.extend_from_slice(line);
        let wakes = match buffer.thread {
            Thread::Idle => true,
            Thread::Gathering => !was_urgent && buffer.is_urgent(),
            Thread::Writing => false,
        };
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
        log_gathering(GATHERING)
    }

    fn log_gathering(time: Duration) -> (LogWriter, SyncSender<()>, Receiver<Vec<u8>>) {
        let (permit, permits) = sync_channel(1);
        let (written, lines) = channel();
        let writer =
            LogWriter::start_gathering(Reader { permits, written }, time).expect("a thread");
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
        while writer.0.buffer().thread != Thread::Writing {
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
    fn lines_of_a_moment_are_written_together() {
        let (writer, permit, lines) = log_gathering(2 * LONG);
        write(&writer, b"first\n");
        write(&writer, b"second\n");
        permit.send(()).expect("the thread lives");
        // Whoever flushes doesn't wait until the thread has gathered.
        writer.flush_within(LONG);
        assert_eq!(lines.try_recv().as_deref(), Ok(&b"first\nsecond\n"[..]));
    }

    #[test]
    fn many_bytes_are_written_without_waiting_for_more() {
        let (writer, permit, lines) = log_gathering(2 * LONG);
        let line = vec![b'x'; 1024];
        for _ in 0..MANY_BYTES / line.len() {
            write(&writer, &line);
        }
        permit.send(()).expect("the thread lives");
        let written = lines.recv_timeout(LONG).expect("a write");
        assert_eq!(written.len(), MANY_BYTES);
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
