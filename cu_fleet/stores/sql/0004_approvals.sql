-- What a person was asked, and what they answered.

-- One question: about a batch of actions, a worktree to merge, …
CREATE TABLE approval (
    id text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    lease text NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    state text NOT NULL,
    asked_at double precision NOT NULL,
    body text NOT NULL
);

-- The same question, asked again while it is open, is one approval: nobody collects answers to use later.
CREATE UNIQUE INDEX approval_one_open_per_subject ON approval (lease, kind, subject)
WHERE state IN ('waiting', 'approved');

-- What waits for a person, and what its lease's end makes void.
CREATE INDEX approval_by_state ON approval (state);
CREATE INDEX approval_by_lease ON approval (lease);
