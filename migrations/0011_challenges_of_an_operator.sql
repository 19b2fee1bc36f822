-- Finds the oldest challenges of one operator, beyond the number that it may have open, among its own alone.
create index challenges_operator on challenges (operator_id, expires_at desc, challenge_id);
