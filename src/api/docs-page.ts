/**
 * A readable page of the OpenAPI document: one file, no scripts, nothing fetched from elsewhere.
 */
import { html, raw } from 'hono/html'
import { type OpenApiDocument, type OpenApiOperation, PUBLIC_FOR_EVER } from './openapi.ts'

const STYLE = `
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --soft: color-mix(in srgb, currentColor 6%, transparent) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 0 auto; padding: 2rem 1rem 6rem }
h1 { margin: 0 } h2 { margin: 2.5rem 0 .5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); font-size: 1.2rem }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem } h3 + p { margin-top: 0 }
code, pre { font: .875rem/1.45 ui-monospace, monospace } code { overflow-wrap: anywhere } h2 code { font-size: 1.05rem }
p code, li code, td code { background: var(--soft); padding: .1em .3em; border-radius: .25rem }
pre { background: var(--soft); padding: .75rem 1rem; overflow-x: auto; border-radius: .4rem; margin: .5rem 0 1rem }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700 } .note { opacity: .75 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem }
td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line) } td:last-child { padding-right: 0; width: 100% }
td.name, td.type { white-space: nowrap } td.type { opacity: .75 }
nav ul { list-style: none; padding: 0; columns: 2 20rem } nav code { background: none; padding: 0 } nav a { text-decoration: none }
@media (max-width: 40rem) { td { display: block; border: 0; padding: 0 } td.name, td.type { white-space: normal } td:first-child { padding-top: .5rem } td:last-child { padding-bottom: .5rem; border-bottom: 1px solid var(--line) } }
`

type Html = ReturnType<typeof html>

/** @param path where the document is */
export function docsPage(document: OpenApiDocument, path: string): Html {
  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({
      method: method.toUpperCase(),
      path,
      operation,
    })),
  )
  const { securitySchemes } = document.components as {
    securitySchemes: Record<string, { description: string }>
  }
  const levels = Object.entries(securitySchemes)
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${document.info.title} API</title>
<style>${raw(STYLE)}</style>
</head>
<body>
<h1>${document.info.title} API</h1>
<p class="note">Version ${document.info.version} · <a href="${path}">OpenAPI document</a>${document.info.termsOfService === undefined ? '' : html` · <a href="${document.info.termsOfService}">Terms</a>`}</p>
${document.info.description.split('\n\n').map((paragraph) => html`<p>${paragraph === PUBLIC_FOR_EVER ? html`<strong>${paragraph}</strong>` : prose(paragraph)}</p>`)}
<nav><ul>${operations.map(
    ({ method, path, operation }) =>
      html`<li><a href="#${operation.operationId}"><code><span class="method">${method}</span> ${path}</code></a></li>`,
  )}</ul></nav>
<section id="tokens">
<h2>${levels.length > 0 ? 'Tokens, limits and errors' : 'Limits and errors'}</h2>
${
  levels.length > 0
    ? html`<p>A token is sent as <code>Authorization: Bearer &lt;token&gt;</code>. There are two kinds:</p>
${table(levels.map(([level, { description }]) => [{ name: level }, prose(description)]))}`
    : ''
}
<p>An answer of a limited operation carries <code>X-RateLimit-Limit</code>, <code>X-RateLimit-Remaining</code> and
<code>X-RateLimit-Reset</code>; 429 and 503 carry <code>Retry-After</code>, in whole seconds. Every error looks so:</p>
${example({ error: 'rate_limited', message: 'for a person' })}
</section>
${operations.map(section)}
</body>
</html>`
}

function section({
  method,
  path,
  operation,
}: {
  method: string
  path: string
  operation: OpenApiOperation
}): Html {
  const [level] = operation.security.flatMap((requirement) => Object.keys(requirement))
  const request = operation.requestBody?.content['application/json']
  const answers = Object.entries(operation.responses)
  const errors = answers.filter(([status]) => Number(status) >= 400)
  return html`<section id="${operation.operationId}">
<h2><code><span class="method">${method}</span> ${path}</code></h2>
<p><strong>${operation.summary}.</strong> ${prose(operation.description ?? '')}</p>
<p class="note">${level ? html`Needs an <a href="#tokens">${level} token</a>.` : 'Needs no token.'} ${operation.responses['429'] ? 'Limited.' : 'Not limited.'}</p>
${operation.parameters.length > 0 ? parameters(operation.parameters as Parameter[]) : ''}
${request ? html`<h3>Request</h3>${example(request.example)}${fields(request.schema)}` : ''}
${answers
  .filter(([status]) => Number(status) < 400)
  .map(([status, { description, content }]) => {
    const { example: body, schema } = content['application/json']
    return html`<h3>Answer ${status}</h3><p>${prose(description)}.</p>${example(body)}${fields(schema)}`
  })}
${
  errors.length > 0
    ? html`<h3>Errors</h3>${table(
        errors.map(([status, { description, content }]) => [
          { name: `${status} ${(content['application/json'].example as { error: string }).error}` },
          prose(description),
        ]),
      )}`
    : ''
}
</section>`
}

interface Parameter {
  name: string
  in: string
  description: string
  schema: Schema
  required?: boolean
}

function parameters(list: readonly Parameter[]): Html {
  const rows = list.map(({ name, in: where, description, schema, required }) => [
    { name },
    { type: `${where}, ${typeOf(schema)}${required ? '' : ', optional'}` },
    prose(description),
  ])
  return html`<h3>Parameters</h3>${table(rows)}`
}

/** The part of JSON Schema that the document uses. */
/** Of more values than these a table says only what kind they are. */
const FEW = 5

interface Schema {
  type?: string
  description?: string
  properties?: Record<string, Schema>
  required?: string[]
  items?: Schema
  anyOf?: Schema[]
  enum?: readonly string[]
  minimum?: number
  maximum?: number
}

/**
 * The fields that the schema has something to say about; what the others are, the example shows.
 */
function fields(schema: Schema): Html | '' {
  const rows = described(schema, '').map(({ name, type, description }) => [
    { name },
    { type },
    prose(description),
  ])
  return rows.length > 0 ? table(rows) : ''
}

function described(
  schema: Schema,
  prefix: string,
): { name: string; type: string; description: string }[] {
  return Object.entries(schema.properties ?? {}).flatMap(([field, inner]) => {
    const name = `${prefix}${field}`
    const type = `${typeOf(inner)}${schema.required?.includes(field) ? '' : ', optional'}`
    const own =
      inner.description === undefined ? [] : [{ name, type, description: inner.description }]
    return [...own, ...described(inner, `${name}.`), ...described(inner.items ?? {}, `${name}[].`)]
  })
}

function typeOf({ type, anyOf = [], minimum, maximum, enum: values }: Schema): string {
  if (values !== undefined && values.length <= FEW) return values.join(' or ')
  const isRange =
    type === 'integer' &&
    minimum !== undefined &&
    maximum !== undefined &&
    maximum < Number.MAX_SAFE_INTEGER
  return `${type ?? (anyOf.map(typeOf).join(' or ') || 'anything')}${isRange ? ` ${minimum} to ${maximum}` : ''}`
}

function table(
  rows: readonly (readonly ({ name: string } | { type: string } | Html | readonly Html[])[])[],
): Html {
  return html`<table><tbody>${rows.map(
    (cells) =>
      html`<tr>${cells.map((cell) => {
        if ('name' in cell) return html`<td class="name"><code>${cell.name}</code></td>`
        if ('type' in cell) return html`<td class="type">${cell.type}</td>`
        return html`<td>${cell}</td>`
      })}</tr>`,
  )}</tbody></table>`
}

function example(body: unknown): Html {
  return html`<pre>${JSON.stringify(body, null, 2)}</pre>`
}

/** Text of the document, in which backticks enclose code. */
function prose(text: string): Html[] {
  return text
    .split('`')
    .map((part, index) => (index % 2 === 1 ? html`<code>${part}</code>` : html`${part}`))
}
