//! The formats of the log.

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A line for people; coloured on a terminal.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}
