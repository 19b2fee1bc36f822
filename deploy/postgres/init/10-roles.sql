-- Three roles for the database that psql is connected to. Run once by its superuser, as the
-- postgres image runs its init scripts:
-- - tabulum_owner owns the schema and runs the migrations; password from TABULUM_OWNER_PASSWORD.
-- - tabulum is for api nodes and workers: it reads and writes rows, and changes no schema; password
--   from TABULUM_PASSWORD.
-- - tabulum_observer is for the observation service: it has two schemas for what it makes of the
--   log, and may read of the rest what migrations say; password from TABULUM_OBSERVER_PASSWORD.
\set ON_ERROR_STOP on
\set owner_password `printenv TABULUM_OWNER_PASSWORD`
\set app_password `printenv TABULUM_PASSWORD`
\set observer_password `printenv TABULUM_OBSERVER_PASSWORD`

BEGIN;

CREATE ROLE tabulum_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE tabulum LOGIN PASSWORD :'app_password';
CREATE ROLE tabulum_observer LOGIN PASSWORD :'observer_password';
-- What it writes follows from the log, and is made again: no flush of the disk for it.
ALTER ROLE tabulum_observer SET synchronous_commit = off;

ALTER DATABASE :"DBNAME" OWNER TO tabulum_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
-- Temporary tables are a session's own and gone with it: `verify` works with some.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO tabulum;
GRANT CONNECT ON DATABASE :"DBNAME" TO tabulum_observer;

ALTER SCHEMA public OWNER TO tabulum_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO tabulum, tabulum_observer;

-- For everything that a migration will create.
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT USAGE ON SCHEMAS TO tabulum;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tabulum;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT USAGE, SELECT ON SEQUENCES TO tabulum;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT EXECUTE ON FUNCTIONS TO tabulum;

-- The read models of the observation, and those that are to replace them. `verify` compares them
-- with the log.
CREATE SCHEMA observation AUTHORIZATION tabulum_observer;
CREATE SCHEMA observation_next AUTHORIZATION tabulum_observer;
GRANT USAGE ON SCHEMA observation TO tabulum;
-- In these schemas, so that a backup without them has nothing of that role.
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_observer IN SCHEMA observation, observation_next
  GRANT SELECT ON TABLES TO tabulum;

COMMIT;
