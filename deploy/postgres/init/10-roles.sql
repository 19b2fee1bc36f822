-- Two roles for the database that psql is connected to. Run once by its superuser, as the postgres image runs its init scripts:
--   tabulum_owner  owns the schema and runs the migrations; password from TABULUM_OWNER_PASSWORD
--   tabulum        api nodes and workers: reads and writes rows, changes no schema; password from TABULUM_PASSWORD
\set ON_ERROR_STOP on
\set owner_password `printenv TABULUM_OWNER_PASSWORD`
\set app_password `printenv TABULUM_PASSWORD`

BEGIN;

CREATE ROLE tabulum_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE tabulum LOGIN PASSWORD :'app_password';

ALTER DATABASE :"DBNAME" OWNER TO tabulum_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
-- Temporary tables are a session's own and gone with it: `verify` works with some.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO tabulum;

ALTER SCHEMA public OWNER TO tabulum_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO tabulum;

-- For everything that a migration will create.
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT USAGE ON SCHEMAS TO tabulum;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tabulum;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT USAGE, SELECT ON SEQUENCES TO tabulum;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE tabulum_owner GRANT EXECUTE ON FUNCTIONS TO tabulum;

COMMIT;
