-- What the observation service may read of the kernel's tables (deploy/postgres/init): none that
-- holds a credential. The function that counts keys does what its caller may.
do $$ begin
  if exists (select from pg_roles where rolname = 'tabulum_observer') then
    grant select on state, state_blocks, state_usage, removals, erasures to tabulum_observer;
    alter default privileges grant execute on functions to tabulum_observer;
  end if;
end $$;
