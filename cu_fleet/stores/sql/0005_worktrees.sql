-- Worktrees: a run's own branch and folder of a git repository, which lies in its desktop's slot while its lease lives.

CREATE TABLE worktree (
    id text NOT NULL PRIMARY KEY,
    arrival bigint NOT NULL UNIQUE,
    lease text NOT NULL,
    desktop text NOT NULL,
    state text NOT NULL,
    created_at double precision NOT NULL,
    body text NOT NULL
);

-- One worktree a lease, and so one a slot.
CREATE UNIQUE INDEX worktree_one_of_a_lease ON worktree (lease) WHERE state <> 'gone';

-- What must leave a slot before it is emptied.
CREATE INDEX worktree_by_desktop ON worktree (desktop, state);
