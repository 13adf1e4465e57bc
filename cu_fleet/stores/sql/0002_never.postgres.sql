-- What must never be changed once it is written. Triggers are where the two databases' languages part.

-- Says no, in words.
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit record is append-only: an entry is never changed or removed'
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- An entry of the audit record stands as it was written, and none is taken away.
CREATE TRIGGER audit_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();

-- Says no to a gap.
CREATE FUNCTION audit_refuse_gap() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit) THEN
        RAISE EXCEPTION 'the audit record is append-only: an entry follows the newest one'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- A new one comes right after the newest.
CREATE TRIGGER audit_never_skips BEFORE INSERT ON audit
FOR EACH ROW EXECUTE FUNCTION audit_refuse_gap();

-- Says no as the unique index would.
CREATE FUNCTION holding_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'duplicate key value violates unique constraint "holding_pkey"'
        USING ERRCODE = 'unique_violation', CONSTRAINT = 'holding_pkey',
        DETAIL = format('Key (resource)=(%s) already exists.', NEW.resource);
END $$;

-- A resource does not change hands: it is given up, and then taken.
CREATE TRIGGER holding_never_changes_hands BEFORE UPDATE ON holding
FOR EACH ROW WHEN (NEW.lease <> OLD.lease) EXECUTE FUNCTION holding_refuse();
