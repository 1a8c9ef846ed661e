"""What people ask for first, by Unicode name: drawn more often, so that a short training learns at least
these well.
"""

from __future__ import annotations

NAMES = """\
monkey face; gorilla; dog; dog face; wolf; fox; cat; cat face; lion; tiger; horse face; unicorn; zebra;
cow face; pig face; elephant; giraffe; mouse face; rabbit face; bear; koala; panda; chicken; baby chick;
penguin; owl; frog; turtle; snake; T-Rex; whale; dolphin; fish; tropical fish; shark; octopus; snail;
butterfly; honeybee; lady beetle; spider; duck; rose; sunflower; tulip; cherry blossom; cactus; evergreen
tree; deciduous tree; palm tree; maple leaf; four leaf clover; mushroom; grapes; watermelon; lemon;
banana; pineapple; red apple; green apple; pear; peach; cherries; strawberry; tomato; avocado; carrot;
ear of corn; broccoli; bread; croissant; pretzel; cheese wedge; hamburger; french fries; pizza; hot dog;
taco; egg; cooking; popcorn; sushi; soft ice cream; doughnut; cookie; birthday cake; cupcake; lollipop;
hot beverage; teapot; beer mug; volcano; house; castle; tent; locomotive; bus; ambulance; police car;
taxi; automobile; tractor; bicycle; motor scooter; anchor; sailboat; airplane; helicopter; rocket; flying
saucer; sun; sun with face; crescent moon; star; cloud; rainbow; umbrella; snowflake; snowman; fire;
droplet; Christmas tree; balloon; wrapped gift; trophy; soccer ball; basketball; guitar; trumpet; drum;
violin; light bulb; candle; books; pencil; scissors; key; hammer; bomb; magnet; telescope; door; chair;
crown; top hat; glasses; dress; t-shirt; umbrella with rain drops; camera; television; laptop; mobile
phone; alarm clock; bell; envelope; money bag; gem stone; jack-o-lantern; teddy bear; artist palette;
grinning face; smiling face with heart-eyes; smiling face with sunglasses; face with tears of joy; loudly
crying face; angry face; winking face; ghost; skull; alien; robot; pile of poo; red heart; blue heart;
green heart; thumbs up; Santa Claus
"""

FAVOURITES = frozenset(" ".join(NAMES.split()).split("; "))
