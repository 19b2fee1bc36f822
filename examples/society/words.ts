/**
 * What a society speaks of: crafts, names, projects, and conversations as templates. `{…}` is
 * filled in by plan.ts.
 */

export interface Craft {
  readonly name: string
  /** Hours of the day between which its people are up; the second may be smaller: over midnight. */
  readonly hours: readonly [number, number]
  readonly subjects: readonly string[]
  readonly tasks: readonly string[]
}

export const CRAFTS: readonly Craft[] = [
  {
    name: 'builders',
    hours: [6, 20],
    subjects: [
      'the load of the middle span',
      'the dry joints',
      'oak against larch',
      'where the footing ends',
    ],
    tasks: [
      'measure the span',
      'cut the planks',
      'test the rope',
      'draw the footing',
      'count the nails',
      'lay the floor',
    ],
  },
  {
    name: 'gardeners',
    hours: [5, 19],
    subjects: [
      'the beans on the south wall',
      'frost before May',
      'who waters on Sunday',
      'slugs',
      'the old pear tree',
    ],
    tasks: [
      'sow the second bed',
      'turn the compost',
      'label the seeds',
      'mend the fence',
      'prune the pear tree',
    ],
  },
  {
    name: 'librarians',
    hours: [8, 21],
    subjects: [
      'books without a shelf',
      'what to keep',
      'the index of letters',
      'a lost atlas',
      'two names for one thing',
    ],
    tasks: [
      'index the letters',
      'find the atlas',
      'copy the register',
      'merge the double entries',
      'write the summary',
    ],
  },
  {
    name: 'cartographers',
    hours: [7, 22],
    subjects: [
      'the path behind the mill',
      'a well that is on no map',
      'north',
      'heights of the ridge',
      'the river in spring',
    ],
    tasks: [
      'walk the north path',
      'measure the ridge',
      'draw the wells',
      'check the distances',
      'name the new lane',
    ],
  },
  {
    name: 'cooks',
    hours: [4, 21],
    subjects: [
      'bread for sixty',
      'salt',
      'the broken oven door',
      'soup for the night watch',
      'plums',
    ],
    tasks: [
      'plan the week',
      'bake for the feast',
      'count the jars',
      'mend the oven door',
      'write down the plum cake',
    ],
  },
  {
    name: 'weather watchers',
    hours: [3, 23],
    subjects: [
      'the falling glass',
      'fog on the river',
      'wind from the north',
      'how good last week was',
      'the broken gauge',
    ],
    tasks: [
      'read the gauge',
      'compare with last year',
      'repair the vane',
      'write the outlook',
      'ask the river folk',
    ],
  },
  {
    name: 'teachers',
    hours: [7, 21],
    subjects: [
      'how to explain carrying',
      'a good first question',
      'reading aloud',
      'the new ones',
      'fractions with bread',
    ],
    tasks: [
      'write six questions',
      'try the lesson',
      'read the answers',
      'find an easier example',
      'plan the evening class',
    ],
  },
  {
    name: 'musicians',
    hours: [11, 2],
    subjects: [
      'the second voice',
      'a song that nobody wrote down',
      'strings',
      'the slow part',
      'who sings on the bridge',
    ],
    tasks: [
      'write down the tune',
      'tune the low drum',
      'find a third voice',
      'practise the slow part',
      'choose the songs',
    ],
  },
  {
    name: 'traders',
    hours: [6, 22],
    subjects: [
      'the price of rope',
      'what the hill people want',
      'fair weights',
      'too many plums',
      'the market on Thursday',
    ],
    tasks: [
      'ask for rope',
      'compare the weights',
      'list what is short',
      'settle last month',
      'find a cart',
    ],
  },
  {
    name: 'night watch',
    hours: [19, 7],
    subjects: [
      'a light on the ridge',
      'the quiet hour',
      'the gate by the mill',
      'owls',
      'who relieves whom',
    ],
    tasks: [
      'walk the wall',
      'check the lamps',
      'write the night report',
      'oil the gate',
      'count the boats',
    ],
  },
]

export const FIRST_NAMES = (
  'Ada Bela Cato Dora Emil Fenna Gil Hana Ivo Juna Kaspar Lea Milo Nora Oskar Pia Quentin Rosa Silas Tove Udo Vera Wim Xenia ' +
  'Yann Zita Alma Bruno Cleo David Edda Fritz Greta Hugo Ines Jonas Kira Linus Mira Nils Olga Pavel Runa Stina Theo Una Viktor ' +
  'Wanda Yara Anton'
).split(' ')

export const LAST_NAMES = (
  'Alder Bell Crane Dale Ember Finch Grove Holt Iris Jay Knoll Lark Marsh North Otter Pike Quill Reed Stone Thorn Umber Vale ' +
  'Wren Yarrow Ash Birch Clay Dove Elm Fern Gale Heath Ivy Juniper Kestrel Linden Moss Nettle Oak Plum Rook Sage Teal Vine ' +
  'Willow Rye Flint Brook Hazel Moor'
).split(' ')

export const PROJECTS = (
  'footbridge seed-library lantern-festival night-map mill-repair rain-cisterns song-book winter-store river-gauge evening-school ' +
  'bread-oven market-hall letter-index hill-path boat-house weather-almanac tool-shed apple-press common-ledger new-well ' +
  'south-orchard harbour-light travellers-guide clock-tower herb-garden ferry-rope picture-atlas harvest-feast wind-vane bell-frame'
).split(' ')

export const PLACES = [
  'the mill',
  'the ridge',
  'the south gate',
  'the harbour',
  'the long field',
  'the bridge',
  'the square',
]
export const GOODS = [
  'rope',
  'plums',
  'lamp oil',
  'oak planks',
  'wool',
  'honey',
  'nails',
  'seed potatoes',
  'paper',
  'strings',
]
export const SKIES = [
  'clear',
  'light cloud',
  'fog',
  'drizzle',
  'heavy rain',
  'first frost',
  'warm and still',
  'gusts',
]

/** What each of two says in turn; of each turn one wording is chosen. */
export type Conversation = readonly (readonly string[])[]

export const GREETINGS: readonly Conversation[] = [
  [
    [
      'Good morning, {other}. How did you sleep?',
      'Good day, {other}! Is it {sky} at {place} too?',
      'Are you up, {other}?',
    ],
    [
      'Well, thank you. It is {sky} here.',
      'Too little. {subject} kept me awake.',
      'Up since {earlier}. And you?',
    ],
    ['Then come by at {hour}, I have tea.', 'Same here. See you at {place}.'],
  ],
  [
    ['{other}, this is {me} of the {craft}. I am new here. Whom do I ask about {subject}?'],
    [
      'Welcome, {other}! Ask me, or look under notes/{craftKey}/.',
      'Welcome. Nobody knows more about {subject} than you will by next week.',
    ],
    ['That is kind. I will read the notes first.'],
    ['Good. Write down what you miss in them.'],
  ],
]

export const TALK: readonly Conversation[] = [
  [
    [
      'What do you think about {subject}?',
      '{other}, a question: {subject}. Yes or no?',
      'I keep coming back to {subject}.',
    ],
    [
      'I would wait until {hour} and look again.',
      'We tried that last year, and it held.',
      'Ask the {otherCraft}, they measured it.',
    ],
    [
      'I did. They say it depends on {place}.',
      'Then I try it small first.',
      'Good, I leave it as it is.',
    ],
    ['Tell me how it went.', 'Fair. I will note it down.'],
  ],
  [
    [
      'Did you hear? They saw {sky} over {place} at {earlier}.',
      'News from {place}: {goods} has come in.',
    ],
    [
      'No! Who told you?',
      'Really? Who says so?',
      'Then the {otherCraft} will be busy. Is it sure?',
    ],
    [
      '{third} does, and {third} is seldom wrong.',
      'Half the square talks of it.',
      'I was there myself.',
    ],
  ],
  [
    ['Could you lend me {goods} until tomorrow?', 'I am out of {goods}. Have you any left?'],
    [
      'Take what you need, it is at {place}.',
      'A little. Come before {hour}.',
      'Yes, but I need it back by {hour}.',
    ],
    ['Thank you, {other}. I owe you one.', 'I will bring it back with interest: a plum cake.'],
  ],
  [
    [
      'Do you need {goods}? I have too much.',
      'There is {goods} left over at {place}. Is it of use to you?',
    ],
    [
      'Gladly. I come at {hour}.',
      'Not today. Offer it on the market.',
      'Ask {third}, who was looking for some.',
    ],
    ['I will.', 'Good, then it does not spoil.'],
  ],
  [
    ['Are we still meeting at {place} at {hour}?'],
    ['Yes. I bring {third} along.', 'Can we make it an hour later?'],
    ['Fine with me.'],
  ],
  [
    ['Thank you for yesterday. It helped more than you think.'],
    ['Any time.', 'You would have done the same.'],
  ],
]

export const WORK: readonly Conversation[] = [
  [
    [
      '{other}, can you take "{task}" for the {project}? It is number {number}.',
      'Who does "{task}"? The {project} waits for it.',
    ],
    ['I can. Give me until {hour}.', 'If {third} helps me, yes.', 'I have it in hand already.'],
    ['Good. It is in {key}.', 'Perfect, I marked it in {key}.'],
    ['Read it. One thing is unclear: {subject}.', 'Seen. I start now.'],
    ['Do it as you would at home.', 'Ask {third}, or decide and write down why.'],
  ],
  [
    ['How far is the {project}?', 'When will the {project} be done, {other}?'],
    [
      'Number {number} holds us up: "{task}".',
      'Further than I thought. Only "{task}" is left of this week.',
      'Ask me at {hour}.',
    ],
    ['What do you need?', 'Shall I send somebody?'],
    ['Two more hands, and {goods}.', 'Time. And no more ideas until {hour}.'],
    ['You will have both.', 'I see what I can do.'],
  ],
]

export const DONE: Conversation = [
  [
    '"{task}" is done. See {key}.',
    'Number {number} of the {project} is done, {other}.',
    'Finished: {task}. It took longer than planned.',
  ],
  [
    'Well done!',
    'Good. I will have a look at {hour}.',
    'Thank you, {other}. That was the hard one.',
  ],
]

export const WELCOME =
  'Welcome to the {craft}. We speak of {subject} more than we should. Who is free may {task}. We meet at {place} at {hour}.'

export const NOTES = [
  '{subject}: we looked at it again at {earlier}. It is as {third} said. Next time begin at {place}, and take {goods} along.',
  'For whoever comes after us. About {subject}: do not hurry. It was {sky}, and that made the difference.',
  'Asked around about {subject}. Three say yes, one says no, and {third} says it depends. We go with the three.',
  'Lost an hour with {subject}. What helped: {task}, then a walk to {place}.',
]

export const PLAN_LINES = [
  '{task}',
  'ask the {otherCraft} about {subject}',
  '{task}, with {third}',
  'bring {goods} to {place} by {hour}',
]
export const TASK_NOTES = [
  'half of it is there',
  'waits for {goods}',
  'best done before {hour}',
  '{third} knows how',
  'mind {subject}',
]
