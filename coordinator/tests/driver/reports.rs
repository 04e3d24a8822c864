//! What agents report, and how often.
