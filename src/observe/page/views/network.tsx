/** Who wrote to whom, and how often. */
import type { Network } from '../api.ts'
import { Address, AddressSearch, Bar, count, Waiting } from '../parts.tsx'
import { change, link, route } from '../route.ts'
import { useThen } from '../then.ts'

const ASKED = 1_000
const SHOWN = 200

export function NetworkView() {
  const { parameters } = route.value
  const search = parameters.get('search') ?? ''
  const least = Number(parameters.get('min_count')) || 1
  const { data, refused } = useThen<Network>('/observe/network', {
    limit: ASKED,
    min_count: least > 1 ? least : undefined,
  })
  const found = data?.edges.filter(({ from, to }) => from.includes(search) || to.includes(search)) ?? []
  const shown = found.slice(0, SHOWN)
  return (
    <>
      <form class="filters" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
        <AddressSearch label="with the agent" value={search} />
        <label class="field">
          at least so many messages
          <input
            type="number"
            min="1"
            max="999999"
            value={least}
            onChange={({ currentTarget }) => change({ min_count: currentTarget.value || undefined })}
          />
        </label>
      </form>
      {!data && <Waiting refused={refused} />}
      {data && found.length === 0 && <Waiting>No two agents have written to each other like that.</Waiting>}
      {found.length > 0 && (
        <>
          <p class="quiet" role="status">
            The heaviest first: {count(shown.length)}
            {data && data.edges.length >= ASKED ? ' of many' : ` of ${count(found.length)}`}.
          </p>
          <table>
            <caption class="hidden">Who wrote to whom</caption>
            <thead>
              <tr>
                <th scope="col">from</th>
                <th scope="col">to</th>
                <th scope="col" class="number">
                  messages
                </th>
                <th scope="col" class="wide">
                  <span class="hidden">compared</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {shown.map(({ from, to, count: times }) => (
                <tr key={`${from} ${to}`}>
                  <td>
                    <Address of={from} />
                  </td>
                  <td>
                    <Address of={to} />
                  </td>
                  <td class="number">
                    <a href={link('feed', { agent: from, with: to })} title="The conversation of the two">
                      {count(times)}
                    </a>
                  </td>
                  <td class="wide">
                    <Bar value={times} of={found[0]?.count ?? 1} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </>
      )}
    </>
  )
}
