//! The archive of a bundle: a compressed tar.

use std::io;

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use tar::{Builder, Header};

use super::contents::File;

/// Returns a tar.gz of the files, all in one folder.
pub(super) fn archive(files: &[File], folder: &str, at: Timestamp) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for file in files {
        let mut header = Header::new_gnu();
        header.set_size(u64::try_from(file.text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(at.as_second()).unwrap_or_default());
        let path = format!("{folder}/{}", file.path);
        builder.append_data(&mut header, path, file.text.as_bytes())?;
    }
    builder.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn archive_has_all_files_in_one_folder() {
        let long = format!("replicas/{}/log.txt", "x".repeat(200));
        let files = ["a.json", &long].map(|path| File {
            path: path.to_owned(),
            text: format!("text of {path}"),
        });
        let at = Timestamp::from_second(1_800_000_000).expect("a time");
        let bytes = archive(&files, "bundle", at).expect("an archive");
        let mut read = tar::Archive::new(GzDecoder::new(&*bytes));
        let mut found = Vec::new();
        for entry in read.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            assert_eq!(entry.header().mode().expect("a mode"), 0o600);
            let path = entry.path().expect("a path").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("a text");
            found.push((path, text));
        }
        let expected = files.map(|file| (format!("bundle/{}", file.path), file.text));
        assert_eq!(found, expected);
    }
}
