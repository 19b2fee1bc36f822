-- Which functions of src/*/sql are installed, and as which text: `migrate` replaces those that
-- differ from its own, and a node serves only from those that are its own.
create table installed_functions (
  name text primary key,
  -- SHA-256 of the file.
  hash text not null
);
