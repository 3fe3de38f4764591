//! Standard output, which a reader such as `head` may close early.

use std::io::{self, Write as _};

/// Writes to standard output; a pipe that its reader has closed is no error.
pub(super) fn write(output: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(output.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
