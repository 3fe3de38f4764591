//! The limit of open files, and how many connections that limit leaves room for.
//!
//! A process without free file descriptors accepts no connection and, which is worse, reaches
//! neither the API server nor AWS. So connections are limited: there are never so many that the
//! webhook's own calls would find no descriptor.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The least number of connections, however few descriptors there are.
const LEAST: usize = 16;

/// The file descriptors that the process needs.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorNeeds {
    /// The most connections that are useful.
    pub connections: usize,
    /// The most outgoing calls that all connections together have in flight; one connection has one
    /// at most.
    pub calls: usize,
    /// The descriptors for everything else.
    pub others: usize,
}

/// Raises the soft limit of open files to the hard limit, and returns it. Container runtimes often
/// set a soft limit of 1,024.
#[must_use]
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        // The soft limit stays.
        Err(_) => current,
    };
    // None means that there is no limit.
    allowed.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

impl DescriptorNeeds {
    /// Returns how many connections there may be with so many open files.
    #[must_use]
    pub fn max_connections(self, files: usize) -> usize {
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
    fn connections_leave_a_descriptor_for_each_call() {
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
            assert_eq!(needs.max_connections(files), connections, "{files}");
        }
        for files in 170..4096 {
            let connections = needs.max_connections(files);
            let most = connections + needs.calls.min(connections) + needs.others;
            assert!(most <= files, "{files}: {most}");
        }
    }

    #[test]
    fn soft_limit_is_raised_to_the_hard_limit() {
        let allowed = raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raise_limit(), allowed);
    }
}
