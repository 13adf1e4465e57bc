-- What must never be changed once it is written. Triggers are where the two databases' languages part.

-- An entry of the audit record stands as it was written.
CREATE TRIGGER audit_never_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit record is append-only: an entry is never changed');
END;

-- Nor is one taken away.
CREATE TRIGGER audit_never_removed BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit record is append-only: an entry is never removed');
END;

-- A new one comes right after the newest; this also stops INSERT OR REPLACE.
CREATE TRIGGER audit_never_skips BEFORE INSERT ON audit
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit)
BEGIN
    SELECT RAISE(ABORT, 'the audit record is append-only: an entry follows the newest one');
END;

-- A resource does not change hands: it is given up, and then taken. It speaks as the unique index would.
CREATE TRIGGER holding_never_changes_hands BEFORE UPDATE ON holding
WHEN NEW.lease <> OLD.lease
BEGIN
    SELECT RAISE(ABORT, 'UNIQUE constraint failed: holding.resource');
END;
