//! One AdmissionReview: how it is read, what is decided, and how it is answered.

pub mod decide;
pub mod handler;
pub mod manifest;
pub mod metrics;
pub mod patch;
pub mod pod;
pub mod review;
