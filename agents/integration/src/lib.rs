//! The integration agent.
