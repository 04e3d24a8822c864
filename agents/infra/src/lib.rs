//! The infra agent: certificates, nginx, PostgreSQL, PgBouncer, HTTP.
