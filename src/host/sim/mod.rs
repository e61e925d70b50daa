//! A host in memory, with seeded failures: for tests and rehearsals.
