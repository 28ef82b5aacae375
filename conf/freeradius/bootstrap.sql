-- For a database that is made anew: readers and the writer do not wait for each other.
PRAGMA journal_mode = WAL;
