//! How many files the process may have open, and how many connections that leaves room for.
//!
//! Whoever runs out of file descriptors accepts nobody, and, which is worse, reaches neither the API server nor AWS. So
//! connections are counted beforehand: there are never so many that our own calls would find no descriptor.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The least number of connections, with however few descriptors.
const LEAST: usize = 16;

/// What a listener's clients may use up, and what has to be left for others.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorNeeds {
    /// The most connections that are of use.
    pub connections: usize,
    /// The most calls that all of them together have under way to others; one connection has one at most.
    pub calls: usize,
    /// Everything else.
    pub others: usize,
}

/// Raises what is allowed to what may be asked for, and tells how many files may then be open. Container runtimes often
/// allow 1,024 unless a process asks for more.
#[must_use]
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        // What was allowed stays so.
        Err(_) => current,
    };
    // None means that there is no limit.
    allowed.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

impl DescriptorNeeds {
    /// How many connections there may be, with so many files.
    #[must_use]
    pub fn connections_with(self, files: usize) -> usize {
        let left = files.saturating_sub(self.others);
        let each_calls = left / 2;
        let all_call = left.saturating_sub(self.calls);
        each_calls
            .max(all_call)
            .clamp(LEAST.min(self.connections), self.connections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_few_files_there_are_as_many_connections_as_leave_a_descriptor_for_each_call() {
        let needs = DescriptorNeeds {
            connections: 1024,
            calls: 512,
            others: 128,
        };
        for (files, connections) in [
            (usize::MAX, 1024),
            (1024 + 512 + 128, 1024),
            (1024 + 512 + 127, 1023),
            (1024, 448),
            (256, 64),
            (64, LEAST),
        ] {
            assert_eq!(needs.connections_with(files), connections, "{files}");
        }
        for files in 170..4096 {
            let connections = needs.connections_with(files);
            let most = connections + needs.calls.min(connections) + needs.others;
            assert!(most <= files, "{files}: {most}");
        }
    }

    #[test]
    fn as_much_is_allowed_as_may_be_asked_for() {
        let allowed = raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raise_limit(), allowed);
    }
}
