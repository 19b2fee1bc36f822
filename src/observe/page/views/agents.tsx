/** Who lives here; and one of them. */
import { type Agent, type AgentsPage, type EventsPage, type Network, shorten } from '../api.ts'
import { moment } from '../clock.ts'
import { Address, AddressSearch, Bar, count, Key, Panel, Time, Waiting } from '../parts.tsx'
import { change, link, route } from '../route.ts'
import { useLatest, useThen } from '../then.ts'
import { Timeline } from '../timeline.tsx'
import { Sentence } from '../words.tsx'

const SHOWN = 200

const COLUMNS = {
  registered_at: 'since',
  messages_sent: 'sent',
  messages_received: 'received',
  state_writes: 'writes',
  last_active: 'last active',
} as const
type Column = keyof typeof COLUMNS

export function AgentsView() {
  const address = route.value.parameters.get('address')
  return address === null ? <Everybody /> : <Profile key={address} address={address} />
}

function Everybody() {
  const { parameters } = route.value
  const search = parameters.get('search') ?? ''
  const sort = (parameters.get('sort') ?? 'last_active') as Column
  const cursor = parameters.get('cursor') ?? undefined
  // Of more than a page those are shown that matter for the order; of the past only those that were
  // there first are known.
  const order =
    sort === 'registered_at' ? 'newest' : moment.value === undefined ? 'busiest' : undefined
  const { data, refused } = useThen<AgentsPage>('/observe/agents', { cursor, search, sort: order })
  const found = (data?.agents ?? []).toSorted((one, other) =>
    figureOf(one, sort) < figureOf(other, sort) ? 1 : -1,
  )
  return (
    <>
      <form class="filters" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
        <AddressSearch label="whose address begins with" value={search} />
        <label class="field">
          most first by
          <select
            value={sort}
            onChange={({ currentTarget }) =>
              change({ sort: currentTarget.value, cursor: undefined })
            }
          >
            {Object.entries(COLUMNS).map(([column, name]) => (
              <option key={column} value={column}>
                {name}
              </option>
            ))}
          </select>
        </label>
      </form>
      {!data && <Waiting refused={refused} />}
      {data && (
        <p class="quiet" role="status">
          {count(Math.min(SHOWN, found.length))} of {count(data.total)} agents
        </p>
      )}
      {found.length > 0 && (
        // Wider than a phone.
        <div class="scrolls" tabIndex={0} role="region" aria-label="Agents">
          <table>
            <caption class="hidden">Agents</caption>
            <thead>
              <tr>
                <th scope="col">agent</th>
                {Object.entries(COLUMNS).map(([column, name]) => (
                  <th
                    key={column}
                    scope="col"
                    class={isNumber(column) ? 'number' : ''}
                    aria-sort={column === sort ? 'descending' : undefined}
                  >
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {found.slice(0, SHOWN).map((agent) => (
                <tr key={agent.address}>
                  <td>
                    <Address of={agent.address} />
                  </td>
                  <td>
                    <Time at={agent.registered_at} />
                  </td>
                  <td class="number">{count(agent.messages_sent)}</td>
                  <td class="number">{count(agent.messages_received)}</td>
                  <td class="number">{count(agent.state_writes)}</td>
                  <td>{agent.last_active ? <Time at={agent.last_active} /> : 'never'}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {data?.next_cursor && (
        <a href={link('agents', { sort, cursor: data.next_cursor })}>The next thousand agents</a>
      )}
    </>
  )
}

const isNumber = (column: string) => column.startsWith('messages') || column === 'state_writes'
const figureOf = (agent: Agent, column: Column) => agent[column] ?? ''

function Profile({ address }: { address: string }) {
  const { data, refused } = useThen<Agent>(`/observe/agents/${encodeURIComponent(address)}`)
  const isKnown = data !== undefined
  const network = useThen<Network>(isKnown ? '/observe/network' : undefined, {
    agent: address,
    limit: 200,
  })
  const latest = useLatest<EventsPage>(isKnown ? { agent: address, limit: 20 } : undefined)
  const writes = useLatest<EventsPage>(
    isKnown ? { agent: address, type: 'state_written', limit: 50 } : undefined,
  )
  const keys = [...new Set(writes.data?.events.map(({ data: { key } }) => String(key)))].slice(
    0,
    12,
  )
  const edges = (network.data?.edges ?? []).slice(0, 12)
  return (
    <>
      <p class="crumbs">
        <a href={link('agents')}>all agents</a>
      </p>
      <h2 class="title">
        <bdi>{address}</bdi>
      </h2>
      {!data && (
        <Waiting>
          {refused
            ? refused.status === 404
              ? moment.value === undefined
                ? 'No agent has that address.'
                : 'No agent had that address then.'
              : refused.message
            : undefined}
        </Waiting>
      )}
      {data && (
        <>
          <dl class="figures">
            <Figure name="messages sent" value={count(data.messages_sent)} />
            <Figure name="received" value={count(data.messages_received)} />
            <Figure name="keys written" value={count(data.state_writes)} />
            <div>
              <dt>here since</dt>
              <dd class="small">
                <Time at={data.registered_at} />
              </dd>
            </div>
            <div>
              <dt>last active</dt>
              <dd class="small">{data.last_active ? <Time at={data.last_active} /> : 'never'}</dd>
            </div>
          </dl>
          <Panel title="When it was active">
            <Timeline agent={address} label="Activity of this agent" buckets={60} />
          </Panel>
          <div class="grid">
            <Panel
              title="What it did last"
              more={<a href={link('feed', { agent: address })}>everything</a>}
            >
              <ol class="events short">
                {latest.data?.events.map(shorten).map((event) => (
                  <li key={event.seq}>
                    <span class="what">
                      <Sentence event={event} />
                    </span>
                    <Time at={event.ts} />
                  </li>
                ))}
              </ol>
              {!latest.data && <Waiting refused={latest.refused} />}
            </Panel>
            <div class="column">
              <Panel
                title="Whom it talks to"
                more={<a href={link('network', { agent: address })}>all</a>}
              >
                <ol class="ranking">
                  {edges.map(({ from, to, count: times }) => (
                    <li key={`${from} ${to}`}>
                      <span>
                        {from === address ? 'to ' : 'from '}
                        <Address of={from === address ? to : from} />
                      </span>
                      <Bar value={times} of={edges[0]?.count ?? 1} />
                      <a
                        href={link('feed', { agent: address, with: from === address ? to : from })}
                        title="The conversation of the two"
                      >
                        {count(times)}
                      </a>
                    </li>
                  ))}
                </ol>
                {edges.length === 0 && (
                  <Waiting>{network.data ? 'Nobody yet.' : undefined}</Waiting>
                )}
              </Panel>
              <Panel title="Keys it wrote">
                <ul class="ranking">
                  {keys.map((key) => (
                    <li key={key}>
                      <Key of={key} shown={60} />
                    </li>
                  ))}
                </ul>
                {keys.length === 0 && <Waiting>{writes.data ? 'None.' : undefined}</Waiting>}
              </Panel>
            </div>
          </div>
        </>
      )}
    </>
  )
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  )
}
