//! Calls the check `aws_replies` with the bytes of the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ecr_injector_fuzz::fuzzing::aws_replies::check(input));
