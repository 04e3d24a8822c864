//! The deployment agent.
