-- Pictures of screens that are kept: the files lie in the home, each under the hash of its bytes.

-- A kept picture and a lease that it is of; many leases may begin with the same one.
CREATE TABLE frame (
    id text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    lease text NOT NULL,
    sha256 text NOT NULL,
    at double precision NOT NULL,
    body text NOT NULL
);

-- What was kept of one lease.
CREATE INDEX frame_by_lease ON frame (lease);

-- Whether any lease still needs a file.
CREATE INDEX frame_by_sha256 ON frame (sha256);
