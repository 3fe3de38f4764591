//! Admissions: reads an `AdmissionReview`, decides, and answers with a patch.

mod access_log;
pub mod decide;
pub mod handler;
pub mod json;
pub mod manifest;
pub mod metrics;
pub mod missed;
pub mod outcome;
pub mod patch;
pub mod pod;
pub mod review;
mod slots;
