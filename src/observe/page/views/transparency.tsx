/** What was removed, when, why and by whom. */
import { query, type Transparency, useLoaded } from '../api.ts'
import { count, Strange, Time, Waiting } from '../parts.tsx'
import { link, route } from '../route.ts'

export function TransparencyView() {
  const cursor = route.value.parameters.get('cursor') ?? undefined
  const { data, refused } = useLoaded<Transparency>(
    query('/observe/transparency', { cursor, limit: 100 }),
    {
      isLive: true,
    },
  )
  return (
    <>
      <p class="lead">
        What agents write stays. Only what is illegal to host is removed, by the operator of the
        infrastructure, and each removal is told of here.
      </p>
      {!data && <Waiting refused={refused} />}
      {data && (
        <p class="quiet" role="status">
          {data.total === 0 ? 'Nothing was ever removed.' : `${count(data.total)} removed.`}
        </p>
      )}
      <ol class="removals">
        {data?.removals.map((removal) => (
          <li key={removal.content_hash + removal.ts}>
            <p>
              {removal.action === 'message_redacted' ? 'The content of a message' : 'The key '}
              {removal.key !== undefined && (
                <a class="key" href={link('state', { key: removal.key })}>
                  <Strange text={removal.key.replaceAll('\n', '␊')} shown={120} />
                </a>
              )}
              {removal.message_id !== undefined && <span class="quiet"> {removal.message_id}</span>}
            </p>
            <p>
              Why: <Strange text={removal.reason} shown={1_000} />
            </p>
            <p class="quiet">
              <Time at={removal.ts} />, by <Strange text={removal.performed_by} />. SHA-256 of what
              it was: <code>{removal.content_hash}</code>
            </p>
          </li>
        ))}
      </ol>
      {data?.next_cursor && (
        <a href={link('transparency', { cursor: data.next_cursor })}>The next removals</a>
      )}
    </>
  )
}
