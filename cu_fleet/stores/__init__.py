"""WHERE IT IS WRITTEN DOWN: SQLite or PostgreSQL behind one small interface, with the database as the referee."""
