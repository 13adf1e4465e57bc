-- The tables as they were at first, for SQLite and PostgreSQL alike.
--
-- Each record's table has its key, the columns it is found and constrained by, the whole record as JSON in `body`, and
-- `arrival`, which grows with every new row, so that "oldest first" is exact and needs no clock. What must never be is
-- made unstorable here, so that even a wrong controller cannot do it.

-- Small facts about the fleet itself, by name.
CREATE TABLE meta (
    name text NOT NULL PRIMARY KEY,
    value text NOT NULL
);

-- Lasting sequences of numbers: the newest that was given out.
CREATE TABLE number (
    name text NOT NULL PRIMARY KEY,
    value bigint NOT NULL
);

-- One screen each, from the plan to make it until nothing is left of it.
CREATE TABLE desktop (
    id text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    name text,
    profile text NOT NULL,
    backend text NOT NULL,
    stage text NOT NULL,
    created_at double precision NOT NULL,
    body text NOT NULL
);

-- A name means one desktop, until that one is gone.
CREATE UNIQUE INDEX desktop_one_per_name ON desktop (name) WHERE name IS NOT NULL AND stage <> 'gone';

-- The reconciler asks by stage all the time.
CREATE INDEX desktop_by_stage ON desktop (stage);

-- Every request for a desktop, waiting, granted or over. An active one is on a desktop.
CREATE TABLE lease (
    id text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    agent text NOT NULL,
    state text NOT NULL,
    desktop text,
    request_id text,
    asked_at double precision NOT NULL,
    body text NOT NULL,
    CONSTRAINT lease_active_has_desktop CHECK (state <> 'active' OR desktop IS NOT NULL)
);

-- A desktop is one lease's at a time.
CREATE UNIQUE INDEX lease_one_active_per_desktop ON lease (desktop) WHERE state = 'active';

-- The same request, sent twice, is one lease.
CREATE UNIQUE INDEX lease_one_per_request ON lease (agent, request_id) WHERE request_id IS NOT NULL;

-- The queue and the clocks ask by state all the time; ended leases are many.
CREATE INDEX lease_by_state ON lease (state);

-- What a desktop's leases were, to say who had it.
CREATE INDEX lease_by_desktop ON lease (desktop);

-- Who may ask for desktops.
CREATE TABLE agent (
    name text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    parent text,
    body text NOT NULL
);

-- Who supervises them.
CREATE TABLE operator (
    name text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    body text NOT NULL
);

-- Saved states of desktops; they outlive the desktop they were taken of.
CREATE TABLE snapshot (
    id text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    desktop text NOT NULL,
    state text NOT NULL,
    created_at double precision NOT NULL,
    body text NOT NULL
);

-- A desktop's saved states.
CREATE INDEX snapshot_by_desktop ON snapshot (desktop);

-- Who holds a named resource: its key allows one holder, and the holder is a lease that is on record.
CREATE TABLE holding (
    resource text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    lease text NOT NULL REFERENCES lease (id) DEFERRABLE INITIALLY DEFERRED,
    body text NOT NULL
);

-- What a lease holds.
CREATE INDEX holding_by_lease ON holding (lease);

-- The audit chain: `body` is the very text that `mac` covers.
CREATE TABLE audit (
    seq bigint NOT NULL PRIMARY KEY,
    at double precision NOT NULL,
    what text NOT NULL,
    who text NOT NULL,
    lease text,
    agent text,
    desktop text,
    mac text NOT NULL,
    body text NOT NULL
);

-- The record of one lease, one agent, one desktop, without reading all of it.
CREATE INDEX audit_by_lease ON audit (lease, seq) WHERE lease IS NOT NULL;
CREATE INDEX audit_by_agent ON audit (agent, seq) WHERE agent IS NOT NULL;
CREATE INDEX audit_by_desktop ON audit (desktop, seq) WHERE desktop IS NOT NULL;
