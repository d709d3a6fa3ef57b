"""English sentences for benchmarks: to calibrate on, and others to judge by. Written for this project."""

from __future__ import annotations

CALIBRATION = """
The ferry leaves at half past six and takes about forty minutes to cross the bay.
She kept the letters in a biscuit tin under the bed for thirty years.
Interest rates were left unchanged for the third month in a row.
To reset the router, hold the small button at the back for ten seconds.
Whales sleep with one half of their brain at a time.
He paid for the coffee in coins and apologised to nobody in particular.
The committee will publish its findings before the end of the quarter.
Fold the egg whites in gently, or the cake will not rise.
Our flight was cancelled because of fog over the runway.
A prime number has exactly two divisors, one and itself.
The old bridge was closed to lorries after the inspection.
Please send the signed contract to our office in Lisbon by Friday.
I have never seen so many stars as on that night in the desert.
The vaccine has to be stored below minus twenty degrees.
Two boys were throwing stones at a tin can on the wall.
This function returns None when the key is not in the dictionary.
The orchestra tuned for a long time before the conductor came in.
Water boils at a lower temperature in the mountains.
You can return the shoes within thirty days if you keep the receipt.
The novel begins with a funeral and ends with a wedding.
Unemployment fell to its lowest level since the war.
My grandmother taught me to whistle with two fingers.
The river changes its course after every flood.
A red light means that the battery needs charging.
Scientists have found a new species of frog in the cloud forest.
The judge asked the witness to speak a little louder.
It is cheaper to repair the roof now than to replace it in five years.
Nobody at the station knew why the train was late.
The cat watched the snow fall from behind the curtain.
Add salt, pepper and a squeeze of lemon before serving.
The company recalled two million cars over a faulty airbag.
He runs ten kilometres along the canal every morning.
The museum is free on the first Sunday of each month.
Her thesis deals with trade routes in the late Bronze Age.
An engine that is too cold burns more fuel.
The children built a raft from barrels and rope.
The server rejects requests that are larger than ten megabytes.
They planted an olive tree in memory of their father.
The final score was three to two after extra time.
Glass is made of sand, soda ash and limestone.
The queue at the bakery went all the way round the corner.
Most of the island has no electricity after midnight.
The prime minister resigned over the budget vote.
If the rash does not go away within a week, see a doctor.
The carpenter measured the door twice and cut it once.
Light from that galaxy left it before there were people.
The hotel was clean, but the walls were as thin as paper.
We need three more volunteers for the night shift.
The printer is out of ink again.
Salmon swim upstream to the place where they were born.
The treaty was signed in a railway carriage.
I would rather walk than wait another hour for the bus.
The price of wheat has doubled since the spring.
A good knife is heavier than it looks.
The teacher drew a triangle on the board and named its angles.
The storm tore the sails and broke the mast.
Her new album was recorded in an empty church.
Fill in the form in capital letters and sign it at the bottom.
The volcano has been quiet for four hundred years.
He learned Portuguese from the songs his neighbours played.
The heart pumps about five litres of blood a minute.
The lift is out of order; please use the stairs.
The city wants to plant a thousand trees along its avenues.
My phone died just when I found the address.
The bees had gone, and nobody could say where.
Each player is dealt seven cards, and the rest form the stock.
The trial was adjourned until Monday morning.
The soup was too hot to eat and too good to wait for.
A compiler translates source code into machine instructions.
The old miner coughed and went on with his story.
Tickets for the concert sold out within four minutes.
The drought has emptied the reservoirs in the south.
She speaks four languages and is silent in all of them.
The tyre pressure should be checked once a month.
Bats find their way by listening to their own echoes.
The union called off the strike after an all-night meeting.
The path is steep, and after rain it is slippery.
An apple a day is good advice, but not a treatment.
The photograph shows three men beside a steam tractor.
Parliament passed the law by a single vote.
The baby laughed at the spoon and threw it on the floor.
Our shop is closed for stocktaking on the last day of the year.
The satellite takes a picture of the whole Earth twice a day.
I forgot my umbrella, and of course it poured.
The recipe serves six, or four who are hungry.
The tower leans a little more every century.
Copper conducts heat better than iron does.
The nurse changed the bandage and opened the window.
They argued about the map until it got dark.
The bank will never ask you for your password.
The play was booed on its first night and is a classic today.
The glacier has lost a third of its ice in fifty years.
The dog knows the sound of her car.
Profits rose by eight per cent, although sales were flat.
The wall is painted white to keep the house cool.
An earthquake was felt as far away as the capital.
He tied the boat to a post and walked into the village.
The exam has two parts, one written and one oral.
The library lends tools and musical instruments, too.
The roses have to be cut back in February.
The patch fixes a leak that grew with every request.
""".strip().splitlines()

# Three sentences to a subject: the first two say much the same, the third is of the same field.
EVALUATION = """
The central bank raised interest rates by a quarter of a point.
Borrowing became dearer after the bank put its key rate up by 0.25 per cent.
Inflation ate up most of last year's pay rise.
A man is playing the guitar on the street corner.
A busker with a guitar performs on the pavement.
The violin has four strings and no frets.
How do I reset my password?
I forgot my login details and want to set a new password.
My account was locked after three failed attempts.
Heavy rain flooded the cellars along the river.
After the downpour the basements near the water were under water.
Tomorrow will be dry with some sunshine.
The goalkeeper saved two penalties in the final.
Two spot kicks were stopped by the keeper in the deciding match.
The marathon was won in just over two hours.
Doctors advise eating less salt and more vegetables.
Physicians recommend cutting down on salt and eating more greens.
The surgeon washed his hands for five minutes.
The telescope discovered a planet that circles two suns.
Astronomers found a world that orbits a pair of stars.
The Moon moves away from us a little every year.
This laptop gets hot and its fan is loud.
The notebook overheats and makes a lot of noise.
I am looking for a monitor with a better resolution.
The chef roasted the lamb with garlic and rosemary.
The cook prepared roast lamb with herbs and garlic.
This bread needs another ten minutes in the oven.
The court ruled that the contract was void.
According to the judges the agreement had no legal force.
The lawyer charged for every phone call.
A woman is slicing an onion in the kitchen.
Someone cuts an onion on a wooden board.
The potatoes are still in the ground.
The train to Hamburg is delayed by twenty minutes.
Passengers for Hamburg have to wait another third of an hour.
A monthly pass is valid on all buses and trams.
The bug appears only when two threads write to the same file.
The error is a race between threads that share a file.
All tests passed on the second run.
The painting was stolen from the gallery at night.
Thieves took the picture from the museum after dark.
The sculptor works in marble and bronze.
Children under five travel free of charge.
No ticket is needed for kids below the age of five.
Dogs have to be kept on a lead in the carriage.
The company laid off a tenth of its workers.
One in ten employees lost their job at the firm.
The start-up is looking for a second round of money.
Bees carry pollen from flower to flower.
Blossoms are pollinated by honeybees.
The spider waited in the middle of its web.
The old house creaks when the wind blows.
In a storm you can hear the timbers of the ancient building groan.
The tenants have to pay for the heating themselves.
He proposed to her on a beach at sunset.
As the sun went down by the sea, he asked her to marry him.
Their divorce took longer than their marriage.
The battery of the electric car lasts four hundred kilometres.
On one charge the electric vehicle drives about 400 km.
The mechanic changed the oil and the filter.
The army withdrew from the border after the ceasefire.
Troops left the frontier once the truce had begun.
The ambassador was called back for talks.
The professor explained how volcanoes erupt.
In her lecture she described what makes a volcano break out.
The pupils handed in their homework late.
A sparse matrix holds mostly zeros and can be stored in less memory.
Matrices with few non-zero entries can be kept in compressed form.
The gradient vanishes in very deep networks.
The shop refunds your money if the goods are damaged.
You get your money back for items that arrive broken.
The parcel was left with a neighbour.
The film tells the story of a boxer who loses his sight.
It is a movie about a fighter who goes blind.
The actress forgot her lines in the second act.
Forest fires destroyed hundreds of homes in the valley.
Hundreds of houses burned down when the woods caught fire.
Firefighters rescued a cat from a chimney.
The patient complained of a sharp pain in the chest.
A stabbing chest pain was what brought him to the hospital.
Take one tablet in the morning with a glass of water.
The fishermen came back with empty nets.
The boats returned to harbour without a catch.
Sea level has risen by twenty centimetres in a century.
The government plans to abolish the tax on books.
Ministers want books to be free of tax.
The mayor opened the new swimming pool.
Wolves have returned to the mountains after a hundred years.
A century after they vanished, wolves live in the highlands again.
The farmer counts his sheep every evening.
She learned to swim when she was sixty.
At the age of sixty she took her first swimming lessons.
The lake is too cold for bathing until June.
The internet connection drops every few minutes.
Every couple of minutes I lose my network link.
The new cable carries ten times as much data.
The sun is a star like many others.
Our Sun is just an ordinary star among billions.
It takes light eight minutes to reach the Earth.
He was fined for parking in front of a hydrant.
Leaving his car by the fire hydrant earned him a ticket.
The speed limit on this road is fifty.
The museum shows coins from Roman times.
Ancient Roman money is on display in the exhibition.
The archaeologists found a grave beneath the car park.
I would like a table for two by the window.
Could we have a window table for two people, please?
The waiter brought the wrong bill.
The plane landed safely after an engine failed.
Despite the loss of one engine the aircraft came down unharmed.
Please fasten your seat belts and switch off your phones.
The poem is about a bird that cannot sing.
Its verses speak of a songless bird.
The dictionary lists more than a hundred thousand words.
The tomatoes have to be watered twice a day in summer.
In hot weather give the tomato plants water every morning and evening.
The pear tree bore no fruit this year.
""".strip().splitlines()
